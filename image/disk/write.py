"""Puts files into a disk image: sparse, whole or not at all, the same bytes each time. A shell.

No root, no mount, no loop device: the image is a file that is written at the right places. Where
what is what is `layout.py`'s.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from agent.errors import EnvironmentFault, StateError
from image.disk.gpt import SECTOR_BYTES, Table
from image.disk.layout import Part, Sizes, plan

# Holes are made of whole blocks of a file system; larger ones would miss some.
_BLOCK_BYTES = 4096
_CHUNK_BYTES = 1 << 20


def write(
    out: Path, arch: str, sizes: Sizes, parts: Mapping[str, Path], boot_code: bytes = b"",
    fat: str = "",
) -> Table:  # fmt: skip
    """Write the disk image of these files, by their partitions' names, and return its table.

    `boot_code` (at most 440 bytes) is what a BIOS starts; `fat` names a partition that the MBR
    names, too, for firmware that reads no other table. Raises UsageError for what does not fit,
    EnvironmentFault for a file that cannot be read or written; `out` is then as it was.
    """
    try:
        table = plan(arch, sizes, {name: measure(path) for name, path in parts.items()})
        head = table.head(boot_code, fat)
        with replacing(out) as image:
            image.truncate(table.sectors * SECTOR_BYTES)
            image.write(head)
            for partition in table.partitions:
                if partition.name in parts:
                    image.seek(partition.first * SECTOR_BYTES)
                    room = partition.sectors * SECTOR_BYTES
                    _copy(parts[partition.name], image, room)
            image.seek(table.sectors * SECTOR_BYTES - len(table.tail()))
            image.write(table.tail())
    except OSError as error:
        raise EnvironmentFault(
            f"the image {out} cannot be made: {error.filename or out}: {error.strerror or error}",
            hint="Check the folder's owner and the free space, then try again.",
        ) from None
    return table


@contextmanager
def replacing(out: Path) -> Iterator[BinaryIO]:
    """Give a file that takes the place of `out` at the block's end, whole; else `out` stays.

    Raises OSError.
    """
    descriptor, name = tempfile.mkstemp(".tmp", f".{out.name}.", out.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def measure(path: Path) -> Part:
    """Return a file's size and SHA-256. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Part(file.tell(), digest.digest())


def _copy(path: Path, image: BinaryIO, room: int) -> None:
    """Copy a file to where the image stands, and leave holes where it has blocks of zeros."""
    at = image.tell()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            room -= len(chunk)
            if room < 0:
                raise StateError(f"{path} grew while it was read", hint="Try again.")
            for offset in range(0, len(chunk), _BLOCK_BYTES):
                block = chunk[offset : offset + _BLOCK_BYTES]
                if block.count(0) != len(block):
                    image.seek(at + offset)
                    image.write(block)
            at += len(chunk)
