"""Busybox's commands as links in a root, where no package brought one of that name. A shell."""

from __future__ import annotations

import os
from pathlib import Path

from image.make.programs import run

_FOLDERS = ("bin", "sbin", "usr/bin", "usr/sbin")


def link(root: Path, busybox: Path) -> None:
    """Add the links to /bin/busybox, for the commands that `busybox` has, which runs here.

    Raises EnvironmentFault where it does not.
    """
    for name in run([busybox, "--list-full"]).split():
        path = root / name
        if not os.path.lexists(path) and not _found(root, path.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to("/bin/busybox")


def _found(root: Path, program: str) -> bool:
    return any(os.path.lexists(root / folder / program) for folder in _FOLDERS)
