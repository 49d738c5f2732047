#!/usr/bin/python
# Copyright: Covey's authors. AGPL-3.0-or-later.
"""Ansible module: find the Python that runs Covey on a host, and what wheels for it depend on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: covey_host_kind
short_description: Find the Python that runs Covey, and what wheels for it depend on
options:
  python:
    description: The Python to take, a path or a name; empty for the newest that fits.
    type: str
    default: ""
  build:
    description: What llama.cpp is built for, which is part of the kind.
    type: str
    default: cpu
  folder:
    description: Where Covey is to lie, if it is there or not, whose free room is told.
    type: path
    required: true
"""

RETURN = r"""
python: {description: The path of the Python., type: str, returned: success}
version: {description: Its version, such as 3.11., type: str, returned: success}
kind: {description: Such as cp311-x86_64-glibc2.36-cpu., type: str, returned: success}
free_bytes: {description: Room that is free for the folder., type: int, returned: success}
"""

OLDEST = (3, 11)
CANDIDATES = ("python3.13", "python3.12", "python3.11", "python3")

# Run by the Python that is looked at. Wheels that are built there name no C library in their tags,
# so its version is part of the kind. ensurepip is what Debian leaves out of Python's package.
ASK = """
import importlib.util, json, platform, sys, sysconfig
free = sysconfig.get_config_var("Py_GIL_DISABLED")
name, version = platform.libc_ver()
if not name:
    import subprocess
    said = subprocess.run(["ldd"], capture_output=True, text=True).stderr
    words = said.split("Version ")
    name = "musl" if "musl" in said else "libc"
    version = ".".join(words[1].split()[0].split(".")[:2]) if len(words) > 1 else ""
print(json.dumps({
    "version": sys.version_info[:2],
    "venv": all(importlib.util.find_spec(one) for one in ("venv", "ensurepip")),
    "abi": "cp%d%d" % sys.version_info[:2] + "t" * bool(free),
    "machine": platform.machine(), "libc": name + version, "path": sys.executable,
}))
"""


def ask(python: str) -> dict | None:
    """Return what a Python says of itself; None where it is not there or does not run."""
    path = shutil.which(python)
    if path is None:
        return None
    try:
        said = subprocess.run([path, "-c", ASK], capture_output=True, text=True, timeout=60)
        return json.loads(said.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def chosen(python: str, asked=ask) -> tuple[dict | None, str]:
    """Return the Python that fits, or None and what to do."""
    oldest = ".".join(map(str, OLDEST))
    seen = []
    for candidate in (python,) if python else CANDIDATES:
        found = asked(candidate)
        if found is None:
            continue
        version = ".".join(map(str, found["version"]))
        if tuple(found["version"]) < OLDEST:
            seen.append("{} is {}".format(found["path"], version))
        elif not found["venv"]:
            seen.append("{} has no venv: install python{}-venv".format(found["path"], version))
        else:
            return found, ""
    what = f"{python} cannot run Covey" if python else "no Python here can run Covey"
    reason = "; ".join(seen) or "none was found"
    return None, (
        f"{what} ({reason}). It needs Python {oldest} or newer with venv: install one (Debian 12: "
        "python3-venv; Ubuntu 22.04: python3.11-venv) and name another with covey_python."
    )


def free_bytes(folder: str) -> int:
    """Return the room that is free where a folder is, or will be made."""
    path = Path(folder).absolute()
    while not path.is_dir():
        path = path.parent
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


def main() -> None:
    """Answer for this host."""
    module = AnsibleModule(
        argument_spec={
            "python": {"type": "str", "default": ""},
            "build": {"type": "str", "default": "cpu"},
            "folder": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    found, problem = chosen(module.params["python"])
    if found is None:
        module.fail_json(msg=problem)
    kind = "-".join([found["abi"], found["machine"], found["libc"], module.params["build"]])
    module.exit_json(
        changed=False,
        python=found["path"],
        version=".".join(map(str, found["version"])),
        kind=kind,
        free_bytes=free_bytes(module.params["folder"]),
    )


if __name__ == "__main__":
    main()
