"""Busybox's commands as links in a root, where no package brought one of that name. A shell."""

from __future__ import annotations

import os
from pathlib import Path

from image.make.programs import run

_FOLDERS = ("bin", "sbin", "usr/bin", "usr/sbin")


def link(root: Path) -> None:
    """Add the links to /bin/busybox; raises EnvironmentFault where it cannot be run here."""
    for name in run([root / "bin/busybox", "--list-full"]).split():
        path = root / name
        if not os.path.lexists(path) and not _found(root, path.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to("/bin/busybox")


def _found(root: Path, program: str) -> bool:
    return any(os.path.lexists(root / folder / program) for folder in _FOLDERS)
