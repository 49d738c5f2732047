"""GRUB's two images for BIOS, made to find each other on our disk. A core.

`grub-install` does the same, but needs the disk as a device, and root. What is where is in GRUB
2.06's include/grub/i386/pc/boot.h and kernel.h: the first sector holds where the core image is,
the core's first sector a list of the blocks that the rest of it lies in.
"""

from __future__ import annotations

import struct

from agent.errors import EnvironmentFault
from image.disk.gpt import BOOT_CODE_BYTES, SECTOR_BYTES

_KERNEL_SECTOR_AT = 0x5C
# A jump over a check for old BIOSes that name a floppy; two no-operations trust what they name.
_DRIVE_CHECK_AT = 0x66
_NO_OPERATION = b"\x90\x90"
# The list's last entry: first sector (8 bytes), count (2), segment that it is loaded to (2).
_BLOCKS_AT = SECTOR_BYTES - 12
_LOAD_SEGMENT = 0x820


def boot_code(boot: bytes, core_sector: int) -> bytes:
    """Return the disk's first 440 bytes from GRUB's boot.img; the core image is at a sector."""
    if len(boot) != SECTOR_BYTES or boot[-2:] != b"\x55\xaa":
        raise EnvironmentFault("GRUB's boot.img is no boot sector")
    raw = bytearray(boot)
    struct.pack_into("<Q", raw, _KERNEL_SECTOR_AT, core_sector)
    raw[_DRIVE_CHECK_AT : _DRIVE_CHECK_AT + 2] = _NO_OPERATION
    return bytes(raw[:BOOT_CODE_BYTES])


def core_image(core: bytes, core_sector: int) -> bytes:
    """Return GRUB's core.img for where it is written to, in whole sectors."""
    raw = bytearray(core + bytes(-len(core) % SECTOR_BYTES))
    sectors = len(raw) // SECTOR_BYTES
    if sectors < 2:
        raise EnvironmentFault("GRUB's core.img is too short to be one")
    struct.pack_into("<QHH", raw, _BLOCKS_AT, core_sector + 1, sectors - 1, _LOAD_SEGMENT)
    return bytes(raw)
