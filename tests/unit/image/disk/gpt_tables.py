"""Reads a partition table as UEFI's specification has it, apart from the code that writes one."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path
from uuid import UUID

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def program(name: str) -> str:
    """Return where a program is, or "" where it is not installed."""
    return shutil.which(name, path=PATH) or ""


def header(image: bytes, sector: int) -> dict[str, object]:
    raw = image[sector * 512 : sector * 512 + 92]
    names = "signature revision size crc reserved own other first last guid entries count each ecrc"
    found = dict(zip(names.split(), struct.unpack("<8sIIIIQQQQ16sQIII", raw), strict=True))
    assert found["signature"] == b"EFI PART"
    assert found["crc"] == zlib.crc32(raw[:16] + bytes(4) + raw[20:])
    assert found["own"] == sector
    return found


def partitions(image: bytes, sector: int) -> list[tuple[str, UUID, UUID, int, int, int]]:
    """Return name, type, GUID, first and last sector, and attributes, by the header there."""
    found = header(image, sector)
    at, size = found["entries"] * 512, found["count"] * found["each"]
    raw = image[at : at + size]
    assert found["ecrc"] == zlib.crc32(raw)
    rows = []
    for kind, guid, first, last, attributes, name in struct.iter_unpack("<16s16sQQQ72s", raw):
        if kind != bytes(16):
            text = name.decode("utf-16-le").rstrip("\0")
            rows.append((text, UUID(bytes_le=kind), UUID(bytes_le=guid), first, last, attributes))
    return rows


def mbr(image: bytes) -> list[tuple[int, int, int]]:
    """Return type, first sector and sectors of each partition that the MBR names."""
    assert image[510:512] == b"\x55\xaa"
    rows = [struct.unpack_from("<4xB3xII", image, at) for at in range(446, 510, 16)]
    return [row for row in rows if row[0]]


def sectors_of(path: Path) -> int:
    return path.stat().st_size // 512
