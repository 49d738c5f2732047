"""What lies where on the appliance's disk. A core.

    number  name   holds                                                   type
    1       bios   GRUB's core image for BIOS, 1 MiB                        BIOS boot
    2       boot   what firmware, GRUB and people read; covey.toml          ESP (FAT32)
    3       slot-a a root file system with its kernel (squashfs)            root of the architecture
    4       slot-b the same, for the next version                           root of the architecture
    5       data   keys, models, settings; grows at first boot, so it is last   Linux

All begin at whole MiB, as flash likes it. The GUIDs follow from the parts' contents: the same parts
give the same disk, other parts another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from agent.errors import UsageError
from image.disk import gpt
from image.disk.gpt import SECTOR_BYTES, Partition, Table

MIB = 1 << 20
NAMES = ("bios", "boot", "slot-a", "slot-b", "data")
# The table before the partitions, and the one after them.
_MARGIN_BYTES = MIB
_BIOS_BYTES = MIB
# Where the first partition begins, and with it GRUB's core image for BIOS.
FIRST_SECTOR = _MARGIN_BYTES // SECTOR_BYTES
# FAT32 has at least 65,525 clusters, which take that with the smallest of 512 bytes.
LEAST_BOOT_BYTES = 33 * MIB


@dataclass(frozen=True)
class Sizes:
    """How large the partitions are, in bytes; whole MiB. Raises UsageError otherwise."""

    boot: int = 64 * MIB
    slot: int = 512 * MIB
    data: int = 64 * MIB

    def __post_init__(self) -> None:
        """Refuse what does not align, and a boot partition that could not be FAT32."""
        for name, size in (("boot", self.boot), ("slot", self.slot), ("data", self.data)):
            if size < MIB or size % MIB:
                raise UsageError(
                    f"a {name} partition of {size} bytes is no whole number of MiB",
                    hint="Write a multiple of 1048576.",
                )
        if self.boot < LEAST_BOOT_BYTES:
            raise UsageError(
                f"a boot partition of {self.boot // MIB} MiB is too small for FAT32",
                hint=f"Give it at least {LEAST_BOOT_BYTES // MIB} MiB.",
            )


@dataclass(frozen=True)
class Part:
    """What a partition holds from its first byte on: so many bytes, with this SHA-256."""

    size: int
    sha256: bytes


def plan(arch: str, sizes: Sizes, parts: Mapping[str, Part]) -> Table:
    """Return the partition table of a disk with these parts, by the partitions' names.

    A partition without a part is empty. Raises UsageError for a part that does not fit, or that no
    partition is for, and for an architecture that is not known.
    """
    root = gpt.ROOTS.get(arch)
    if root is None:
        raise UsageError(
            f"{arch!r} is no architecture of an appliance",
            hint=f"There are {', '.join(gpt.ROOTS)}.",
        )
    unknown = sorted(parts.keys() - set(NAMES))
    if unknown:
        raise UsageError(
            f"no partition is for {unknown[0]!r}", hint=f"There are {', '.join(NAMES)}."
        )
    disk = _digest(arch, sizes, parts)
    slot_attributes = gpt.READ_ONLY | gpt.NO_AUTOMOUNT
    wanted = (
        ("bios", gpt.BIOS_BOOT, _BIOS_BYTES, 0),
        ("boot", gpt.ESP, sizes.boot, 0),
        ("slot-a", root, sizes.slot, slot_attributes),
        ("slot-b", root, sizes.slot, slot_attributes),
        ("data", gpt.LINUX, sizes.data, gpt.NO_AUTOMOUNT),
    )
    at = _MARGIN_BYTES
    partitions = []
    for name, kind, size, attributes in wanted:
        part = parts.get(name)
        if part and part.size > size:
            raise UsageError(
                f"what is meant for partition {name} has {part.size} bytes, and it {size}",
                hint="Leave something out, or make the partition larger.",
            )
        partitions.append(
            Partition(
                name,
                kind,
                _guid(disk, name),
                at // SECTOR_BYTES,
                size // SECTOR_BYTES,
                attributes,
            )
        )
        at += size
    return Table(_guid(disk, "disk"), (at + _MARGIN_BYTES) // SECTOR_BYTES, tuple(partitions))


def _digest(arch: str, sizes: Sizes, parts: Mapping[str, Part]) -> bytes:
    """Return a hash over everything that makes the disk what it is."""
    digest = hashlib.sha256(f"covey-disk-v1 {arch} {sizes}".encode())
    for name in NAMES:
        if name in parts:
            digest.update(f" {name} {parts[name].size} ".encode() + parts[name].sha256)
    return digest.digest()


def _guid(disk: bytes, name: str) -> UUID:
    """Return a GUID of version 8 (RFC 9562: made in our own way) for a part of the disk."""
    raw = int.from_bytes(hashlib.sha256(disk + name.encode()).digest()[:16], "big")
    raw = raw & ~(0xF << 76) | 8 << 76
    return UUID(int=raw & ~(0x3 << 62) | 0x2 << 62)
