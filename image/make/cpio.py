"""The kernel's archive for its first file system: cpio in the form `newc`. A core.

The format is in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Owners
are root, times are 0, and the order is that of the names, so the same files give the same bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

_MAGIC = "070701"
_END = "TRAILER!!!"


def archive(files: Mapping[str, bytes], folders: Iterable[str] = ()) -> bytes:
    """Return the archive of files, all of them executable, and of folders; parents are made."""
    parents = {str(parent) for name in (*files, *folders) for parent in PurePosixPath(name).parents}
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in {*parents, *folders} - {"."}]
    entries += [(name, stat.S_IFREG | 0o755, data) for name, data in files.items()]
    # A folder's name is the beginning of what lies in it, so it comes first.
    raw = bytearray()
    for number, entry in enumerate([*sorted(entries), (_END, 0, b"")], start=1):
        raw += _entry(number, *entry)
    return bytes(raw)


def _entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    text = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(text), 0)
    head = _MAGIC.encode() + b"".join(f"{value:08X}".encode() for value in fields) + text
    return _padded(head) + _padded(data)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)
