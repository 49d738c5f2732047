#!/usr/bin/python
# Copyright: Covey's authors. AGPL-3.0-or-later.
"""Ansible module: make Covey's own wheel out of a clone, on the control machine.

The wheel is written by hand, since Covey is Python alone: that needs no setuptools, no pip and no
network, leaves nothing in the clone, and gives the same bytes for the same sources.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import os
import re
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: covey_wheel
short_description: Make Covey's own wheel out of a clone
options:
  source:
    description: The clone.
    type: path
    required: true
  cache:
    description: The folder in which the wheel is kept, below a hash of its sources.
    type: path
    required: true
"""

RETURN = r"""
path: {description: The wheel's path., type: str, returned: always}
version: {description: Covey's version., type: str, returned: always}
sha256: {description: The wheel's SHA-256., type: str, returned: always}
"""

# The earliest that a zip file can tell.
_WHEN = (1980, 1, 1, 0, 0, 0)


def version_of(source: Path) -> str:
    """Return the version that `agent/__init__.py` names."""
    found = re.search(r'^__version__ = "([^"]+)"', (source / "agent/__init__.py").read_text(), re.M)
    if found is None:
        raise ValueError(f"{source}/agent/__init__.py names no version")
    return found[1]


def files_of(source: Path, settings: dict[str, Any]) -> list[Path]:
    """Return the files of the packages and their data as pyproject.toml names them, sorted."""
    include = settings["packages"]["find"]["include"]
    found: set[Path] = set()
    for top in sorted(path for path in source.iterdir() if path.is_dir()):
        if not any(fnmatch.fnmatch(top.name, pattern) for pattern in include):
            continue
        for folder, folders, names in os.walk(top):
            if "__init__.py" in names:
                found |= {Path(folder, name) for name in names if name.endswith(".py")}
            else:
                folders.clear()
    for package, patterns in settings["package-data"].items():
        root = source.joinpath(*package.split("."))
        for pattern in patterns:
            # setuptools' `**` is of files, pathlib's before 3.13 of folders.
            glob = f"{pattern}/*" if pattern.endswith("**") else pattern
            found |= {path for path in root.glob(glob) if path.is_file()}
    return sorted(path for path in found if "__pycache__" not in path.parts)


def content(source: Path) -> dict[str, tuple[bytes, int]]:
    """Return what the wheel holds but for its RECORD: name to bytes and mode."""
    pyproject = tomllib.loads((source / "pyproject.toml").read_text())
    project, version = pyproject["project"], version_of(source)
    facts = f"covey-{version}.dist-info"
    members = {
        str(path.relative_to(source)): (
            path.read_bytes(), 0o755 if path.stat().st_mode & 0o100 else 0o644,
        )
        for path in files_of(source, pyproject["tool"]["setuptools"])
    }  # fmt: skip
    metadata = [
        "Metadata-Version: 2.4", "Name: covey", f"Version: {version}",
        f"Summary: {project['description']}", f"License-Expression: {project['license']}",
        f"Requires-Python: {project['requires-python']}",
        *(f"Requires-Dist: {need}" for need in project["dependencies"]),
    ]  # fmt: skip
    scripts = [f"{name} = {target}" for name, target in project["scripts"].items()]
    for name, lines in {
        "METADATA": metadata,
        "WHEEL": ["Wheel-Version: 1.0", "Generator: covey", "Root-Is-Purelib: true",
                  "Tag: py3-none-any"],
        "entry_points.txt": ["[console_scripts]", *scripts],
    }.items():  # fmt: skip
        members[f"{facts}/{name}"] = ("".join(f"{line}\n" for line in lines).encode(), 0o644)
    members[f"{facts}/licenses/LICENSE"] = ((source / "LICENSE").read_bytes(), 0o644)
    return members


def write(members: dict[str, tuple[bytes, int]], version: str, target: Path) -> None:
    """Write the wheel; its bytes depend on `members` alone."""
    record = f"covey-{version}.dist-info/RECORD"
    lines = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (raw, mode) in sorted(members.items()):
            digest = base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(raw)}\n")
            archive.writestr(_member(name, mode), raw)
        archive.writestr(_member(record, 0o644), "".join([*lines, f"{record},,\n"]))


def _member(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _WHEN)
    info.external_attr = (0o100000 | mode) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def main() -> None:
    """Make the wheel unless one of these very sources is there."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "cache": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    source, cache = Path(module.params["source"]), Path(module.params["cache"])
    try:
        version, members = version_of(source), content(source)
    except (OSError, ValueError, KeyError) as error:
        module.fail_json(
            msg=f"{source} is no clone of Covey: {error}. Set covey_source to one; by default it "
            "is the folder above ansible/."
        )
    # The wheel is as the check needs it, so check mode makes it too: it changes no host.
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            wheel = Path(scratch, f"covey-{version}-py3-none-any.whl")
            write(members, version, wheel)
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            target = cache / digest[:16] / wheel.name
            changed = not target.exists()
            if changed:
                target.parent.mkdir(exist_ok=True)
                wheel.replace(target)
    except OSError as error:
        module.fail_json(
            msg=f"Covey's wheel cannot be written below {cache}: {error.strerror}. Set "
            "covey_cache_dir to a folder of yours with 200 MB of room."
        )
    module.exit_json(changed=False, made=changed, path=str(target), version=version, sha256=digest)


if __name__ == "__main__":
    main()
