"""Puts together what the kernel starts first: busybox, modules, a script. A shell."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

from image.make import cpio
from image.make.modules import FIRST, in_order

INIT = Path(__file__).parents[1] / "boot" / "init.sh"
_FOLDERS = ("dev", "proc", "sys", "low", "up", "new")


def make(root: Path, release: str, more: tuple[str, ...] = ()) -> bytes:
    """Return the compressed archive for the kernel `release` whose tree is `root`.

    `more` are modules that a machine needs beside those of all.
    """
    modules = root / "lib/modules" / release
    order = in_order((modules / "modules.dep").read_text(), (*more, *FIRST))
    files = {
        f"modules/{number:02}-{Path(path).name.partition('.')[0]}.ko": _module(modules / path)
        for number, path in enumerate(order)
    }
    # It is linked statically, so it is all that the script needs.
    files["bin/busybox"] = (root / "bin/busybox").read_bytes()
    files["init"] = INIT.read_bytes()
    return gzip.compress(cpio.archive(files, _FOLDERS), compresslevel=9, mtime=0)


def _module(path: Path) -> bytes:
    """Return a module as it is loaded; Alpine's are compressed, which busybox need not read."""
    content = path.read_bytes()
    match path.suffix:
        case ".gz":
            return gzip.decompress(content)
        case ".xz":
            return lzma.decompress(content)
        case _:
            return content
