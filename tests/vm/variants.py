"""Images for the tests of updates, made by editing the tree of one that image/build made.

All of them have a shell of root's on the second serial line, which no image has otherwise. Used by
test_update.py.

Needs: squashfs-tools.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from image.disk.gpt import SECTOR_BYTES
from image.disk.layout import Sizes, plan
from image.make import assemble, cpio, signing
from image.node.release import Release

_SLOT = plan("x86_64", Sizes(), {}).partitions[2]
_PYTHON = "usr/lib/python3/dist-packages"
_SHELL = "ttyS1::respawn:/bin/sh\n"
# What the kernel calls init ends at once, so it panics.
_DEAD_INIT = {"init": b"#!/bin/busybox sh\nexit 1\n"}

Edit = Callable[[Path], None]


class Variants:
    """Makes them, in `folder`, out of one image; `key` signs them, `public` is its other half."""

    def __init__(self, image: Path, folder: Path, key: bytes, public: bytes) -> None:
        self._image = image
        self._folder = folder
        self._key = key
        self._public = public
        self._root = folder / "root"
        subprocess.run(
            ["unsquashfs", "-q", "-n", "-d", self._root, "-o", str(_SLOT.first * SECTOR_BYTES),
             "-excludes", image, "dev/console"],
            check=True,
        )  # fmt: skip
        with (self._root / "etc/inittab").open("a") as inittab:
            inittab.write(_SHELL)

    def image(self, name: str, version: str, edit: Edit = lambda root: None) -> Path:
        """Return an image with that version, edited."""
        root, slot = self._folder / f"{name}.root", self._folder / f"{name}.slot"
        # Links cost nothing; what is edited is written anew.
        subprocess.run(["cp", "-al", self._root, root], check=True)
        _replace(root / _PYTHON / "agent/__init__.py", f'__version__ = "{version}"\n'.encode())
        for compiled in (root / _PYTHON / "agent/__pycache__").glob("__init__.*"):
            compiled.unlink()
        # One that image/build laid is another variant's, too.
        (root / "usr/lib/covey/release").unlink(missing_ok=True)
        signing.lay(root, Release(version, "x86_64", (self._public,)))
        edit(root)
        assemble.squash(root, slot)
        out = self._folder / f"{name}.img"
        subprocess.run(["cp", "--sparse=always", self._image, out], check=True)
        with out.open("r+b") as disk, slot.open("rb") as content:
            disk.seek(_SLOT.first * SECTOR_BYTES)
            shutil.copyfileobj(content, disk)
        shutil.rmtree(root)
        slot.unlink()
        return out

    def update(self, name: str, version: str, edit: Edit = lambda root: None) -> Path:
        """Return the signed update to such an image."""
        made = self.image(name, version, edit)
        out, _ = signing.make_update(made, self._key, self._folder / f"{name}.update")
        made.unlink()
        return out


def panics(root: Path) -> None:
    """Have the kernel panic before anything else starts."""
    archive = cpio.archive({**_DEAD_INIT, "bin/busybox": (root / "bin/busybox").read_bytes()}, ())
    _replace(root / "boot/initramfs", gzip.compress(archive))


def crash_loops(root: Path) -> None:
    """Have the agent end as soon as it starts, again and again."""
    _replace(root / "usr/lib/covey/agent", b"#!/bin/sh\necho 'Error: broken'\nexit 1\n")
    (root / "usr/lib/covey/agent").chmod(0o755)


def _replace(path: Path, raw: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(raw)
    path.chmod(0o644)
