#!/usr/bin/python
# Copyright: Covey's authors. AGPL-3.0-or-later.
"""Ansible module: take from a folder the wheels that a kind of host needs, as one archive.

It runs on the control machine, whose Python has `packaging` because ansible-core needs it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import zipfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

DOCUMENTATION = r"""
module: covey_wheelset
short_description: Take the wheels that a kind of host needs out of a folder
options:
  folder:
    description: The folder; wheels for one kind may be in a folder of that name in it.
    type: path
    required: true
  kind:
    description: The kind, as covey_host_kind tells it.
    type: str
    required: true
  requirements:
    description: Files with what has to be there, each line NAME==VERSION.
    type: list
    elements: path
    required: true
  cache:
    description: The folder in which the archive is written.
    type: path
    required: true
  archive:
    description: The archive; by default it is named by its content.
    type: path
"""

RETURN = r"""
archive: {description: The tar file., type: str, returned: success}
id: {description: A hash of all wheels in it., type: str, returned: success}
"""


# Many virtual machines announce AMX and do not let it run; llama.cpp's part for such CPUs dies
# there. Those CPUs take the part that is next to it, as on the appliance (image/make/wheels.py).
LEFT_OUT = "llama_cpp/lib/libggml-cpu-sapphirerapids."


def pins(text: str, environment: dict[str, str]) -> dict[str, str]:
    """Return name and version of each `NAME==VERSION ; MARKER` that counts in an environment."""
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        written = line.split("--hash")[0].split(" #")[0].strip()
        if not written or written.startswith("#"):
            continue
        need = Requirement(written)
        if need.marker is None or need.marker.evaluate(environment):
            found[canonicalize_name(need.name)] = next(iter(need.specifier)).version
    return found


def environment_of(kind: str) -> dict[str, str]:
    """Return what markers ask for, of a kind."""
    version = re.match(r"cp3(\d+)", kind)
    if version is None:
        raise ValueError(f"{kind} names no version of Python")
    return {
        "python_version": f"3.{version[1]}", "python_full_version": f"3.{version[1]}.0",
        "sys_platform": "linux", "os_name": "posix", "platform_system": "Linux",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
        "platform_machine": kind.split("-")[1],
    }  # fmt: skip


def fits(name: str, kind: str) -> bool:
    """Say whether a wheel of that file name is for a kind."""
    abi, machine, libc, _ = kind.split("-", 3)
    number = int(re.sub(r"\D", "", abi[3:]))
    for tag in parse_wheel_filename(name)[3]:
        stable = re.fullmatch(r"cp3(\d+)", tag.interpreter)
        python = (
            (tag.interpreter == abi.rstrip("t") and tag.abi in (abi, "none"))
            or (tag.abi == "abi3" and stable is not None and int(stable[1]) <= number)
            or (tag.interpreter in ("py3", f"py3{number}") and tag.abi == "none")
        )
        if python and (tag.platform == "any" or _platform(tag.platform, machine, libc)):
            return True
    return False


def _platform(platform: str, machine: str, libc: str) -> bool:
    """Say whether a platform tag is of a machine, and of a C library that is old enough."""
    if not platform.endswith(f"_{machine}"):
        return False
    if platform == f"linux_{machine}":
        return True
    here = re.fullmatch(r"(glibc|musl)(\d+)\.(\d+).*", libc)
    if here is None:
        return False
    old = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
    name = platform.removesuffix(f"_{machine}")
    if name in old:
        return here[1] == "glibc" and old[name] <= (int(here[2]), int(here[3]))
    needed = re.fullmatch(r"(many|musl)linux_(\d+)_(\d+)", name)
    if needed is None or (needed[1] == "musl") != (here[1] == "musl"):
        return False
    return (int(needed[2]), int(needed[3])) <= (int(here[2]), int(here[3]))


def chosen(names: list[str], wanted: dict[str, str], kind: str) -> tuple[list[str], list[str]]:
    """Return the wheels that are needed, sorted, and what is missing, as `NAME VERSION`."""
    there: dict[tuple[str, str], str] = {}
    for name in sorted(names):
        distribution, version, *_ = parse_wheel_filename(name)
        if fits(name, kind):
            there[distribution, str(version)] = name
    found = {need: there.get(need) for need in wanted.items()}
    return (
        sorted(name for name in found.values() if name),
        [" ".join(need) for need, name in found.items() if name is None],
    )


def without_part(raw: bytes) -> bytes:
    """Return a wheel without `LEFT_OUT`, in its files and in its RECORD."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        members = [info for info in old.infolist() if not info.filename.startswith(LEFT_OUT)]
        if len(members) == len(old.infolist()):
            return raw
        for member in members:
            content = old.read(member)
            if member.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(one for one in lines if not one.startswith(LEFT_OUT)).encode()
            new.writestr(member, content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def pack(folder: Path, names: list[str], target: Path) -> None:
    """Write the wheels into a tar file, as the same bytes each time."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    with tarfile.open(partial, "w") as archive:
        for name in names:
            raw = (folder / name).read_bytes()
            if name.startswith("llama_cpp_python-"):
                raw = without_part(raw)
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(raw), 0o644
            archive.addfile(member, io.BytesIO(raw))
    partial.rename(target)


def main() -> None:
    """Write the archive unless one of the same wheels is there."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "kind": {"type": "str", "required": True},
            "requirements": {"type": "list", "elements": "path", "required": True},
            "cache": {"type": "path", "required": True},
            "archive": {"type": "path"},
        },
        supports_check_mode=True,
    )
    kind, cache = module.params["kind"], Path(module.params["cache"])
    folder = Path(module.params["folder"])
    folder = folder / kind if (folder / kind).is_dir() else folder
    wanted: dict[str, str] = {}
    for file in module.params["requirements"]:
        wanted |= pins(Path(file).read_text(), environment_of(kind))
    names, missing = chosen([path.name for path in folder.glob("*.whl")], wanted, kind)
    if missing:
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" * (len(missing) > 10))
        module.fail_json(
            msg=f"{folder} has no wheels for {kind} of: {shown}. Add them, or leave "
            "covey_wheelhouse empty to have them fetched and built."
        )
    total = hashlib.sha256()
    for name in names:
        total.update(
            f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode()
        )
    digest = total.hexdigest()[:16]
    target = Path(module.params["archive"] or cache / f"{kind}-given-{digest}.tar")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            pack(folder, names, target)
    except OSError as error:
        module.fail_json(
            msg=f"{target} cannot be written: {error.strerror}. Set covey_cache_dir to a folder of "
            "yours with 200 MB of room."
        )
    module.exit_json(changed=False, archive=str(target), id=digest, wheels=names)


if __name__ == "__main__":
    main()
