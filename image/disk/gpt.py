"""A GUID partition table to bytes and back: protective MBR, headers, arrays of entries. A core.

    sector 0        protective MBR, with BIOS boot code in its first 440 bytes
    1               header              last       the header again
    2 … 33          128 entries         before it  the entries again

As UEFI's specification 2.10 has it, chapter 5; sectors have 512 bytes. For firmware that knows no
such table the MBR can name one FAT partition as well, and is then a hybrid one.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from uuid import UUID

from agent.errors import UsageError

SECTOR_BYTES = 512
BOOT_CODE_BYTES = 440
MAX_NAME_CHARACTERS = 36
_ENTRIES, _ENTRY_BYTES = 128, 128
_ENTRY_SECTORS = _ENTRIES * _ENTRY_BYTES // SECTOR_BYTES
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_HEADER_BYTES = _HEADER.size
_ENTRY = struct.Struct("<16s16sQQQ72s")
_SIGNATURE = b"EFI PART"
FIRST_USABLE = 2 + _ENTRY_SECTORS
HEAD_BYTES = FIRST_USABLE * SECTOR_BYTES
# A header and the entries, at the disk's end.
TAIL_SECTORS = 1 + _ENTRY_SECTORS

BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
# By the discoverable partitions specification of the UAPI group.
ROOTS = {
    "x86_64": UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    "aarch64": UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"),
}
READ_ONLY = 1 << 60
NO_AUTOMOUNT = 1 << 63
# Partitions in an MBR: status, first sector by cylinder, type, last sector, first sector, sectors.
_MBR_ENTRY = struct.Struct("<B3sB3sII")
_MBR_PROTECTIVE, _MBR_FAT32 = 0xEE, 0x0C
# A sector that is counted by its number alone.
_NO_CYLINDER = b"\xfe\xff\xff"


@dataclass(frozen=True)
class Partition:
    """A partition of `sectors` sectors from sector `first` on."""

    name: str
    kind: UUID
    guid: UUID
    first: int
    sectors: int
    attributes: int = 0

    @property
    def last(self) -> int:
        """The last sector that belongs to it."""
        return self.first + self.sectors - 1


@dataclass(frozen=True)
class Table:
    """The partitions of a disk of `sectors` sectors, in the order of their numbers from 1.

    Raises UsageError for partitions that overlap or do not fit, and names that are too long.
    """

    guid: UUID
    sectors: int
    partitions: tuple[Partition, ...]

    def __post_init__(self) -> None:
        """Refuse what a firmware would not read."""
        if len(self.partitions) > _ENTRIES:
            raise UsageError(f"a table has at most {_ENTRIES} partitions")
        end = FIRST_USABLE - 1
        for partition in sorted(self.partitions, key=lambda partition: partition.first):
            name = partition.name
            if len(name.encode("utf-16-le")) > 2 * MAX_NAME_CHARACTERS:
                raise UsageError(f"a partition's name has at most {MAX_NAME_CHARACTERS} characters")
            if partition.sectors < 1 or partition.first <= end:
                raise UsageError(f"partition {name!r} is empty, or begins before another one ends")
            end = partition.last
        if end > self.last_usable:
            raise UsageError(
                f"the partitions end in sector {end}, and the disk is too small for that",
                hint=f"It needs at least {end + 1 + TAIL_SECTORS} sectors.",
            )

    @classmethod
    def read(cls, head: bytes) -> Table:
        """Return the table in a disk's first 34 sectors.

        Raises UsageError where there is none, or one that is damaged or of another form than ours.
        """
        header = head[SECTOR_BYTES : SECTOR_BYTES + _HEADER_BYTES]
        entries = head[2 * SECTOR_BYTES : FIRST_USABLE * SECTOR_BYTES]
        if len(entries) < _ENTRIES * _ENTRY_BYTES:
            raise _unreadable()
        found = _HEADER.unpack(header)
        signature, _, size, checksum, _, own, other, _, _, guid, entries_at, count, each, over = (
            found
        )
        bare = header[:16] + bytes(4) + header[20:]
        if (signature, size, own, entries_at) != (_SIGNATURE, _HEADER_BYTES, 1, 2) or (
            (count, each, over) != (_ENTRIES, _ENTRY_BYTES, zlib.crc32(entries))
            or checksum != zlib.crc32(bare)
        ):
            raise _unreadable()
        parts = (entries[at : at + _ENTRY_BYTES] for at in range(0, len(entries), _ENTRY_BYTES))
        return cls(
            UUID(bytes_le=guid), other + 1, tuple(_partition(raw) for raw in parts if any(raw[:16]))
        )

    @property
    def last_usable(self) -> int:
        """The last sector that a partition may have."""
        return self.sectors - TAIL_SECTORS - 1

    def head(self, boot_code: bytes = b"", fat: str = "") -> bytes:
        """Return the disk's first 34 sectors; `boot_code` is for BIOS, at most 440 bytes.

        `fat` is the name of a FAT partition that the MBR names, too; "" for none.
        """
        if len(boot_code) > BOOT_CODE_BYTES:
            raise UsageError(f"boot code has at most {BOOT_CODE_BYTES} bytes")
        entries = self._entries()
        header = self._header(entries, own=1, other=self.sectors - 1, entries_at=2)
        return self._mbr(boot_code, fat) + header + entries

    def tail(self) -> bytes:
        """Return the disk's last 33 sectors."""
        entries = self._entries()
        last = self.sectors - 1
        return entries + self._header(entries, own=last, other=1, entries_at=last - _ENTRY_SECTORS)

    def _mbr(self, boot_code: bytes, fat: str) -> bytes:
        head = boot_code.ljust(BOOT_CODE_BYTES, b"\0") + bytes(6) + self._mbr_entries(fat)
        return head.ljust(SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"

    def _mbr_entries(self, fat: str) -> bytes:
        # A partition without a name is not the one of no name that was asked for.
        found = next((one for one in self.partitions if fat and one.name == fat), None)
        if found is None:
            # One partition of type EE over all, so that old tools see no free space.
            covered = min(self.sectors - 1, 0xFFFF_FFFF)
            return _MBR_ENTRY.pack(0, b"\0\2\0", _MBR_PROTECTIVE, b"\xff\xff\xff", 1, covered)
        # The FAT partition first, as firmware takes the first; EE over what is before it.
        return _MBR_ENTRY.pack(
            0, _NO_CYLINDER, _MBR_FAT32, _NO_CYLINDER, found.first, found.sectors
        ) + _MBR_ENTRY.pack(0, b"\0\2\0", _MBR_PROTECTIVE, _NO_CYLINDER, 1, found.first - 1)

    def _header(self, entries: bytes, *, own: int, other: int, entries_at: int) -> bytes:
        def packed(checksum: int) -> bytes:
            return _HEADER.pack(
                _SIGNATURE,
                0x0001_0000,
                _HEADER_BYTES,
                checksum,
                0,
                own,
                other,
                FIRST_USABLE,
                self.last_usable,
                self.guid.bytes_le,
                entries_at,
                _ENTRIES,
                _ENTRY_BYTES,
                zlib.crc32(entries),
            )

        return packed(zlib.crc32(packed(0))).ljust(SECTOR_BYTES, b"\0")

    def _entries(self) -> bytes:
        return b"".join(map(_entry, self.partitions)).ljust(_ENTRIES * _ENTRY_BYTES, b"\0")


def _entry(partition: Partition) -> bytes:
    return _ENTRY.pack(
        partition.kind.bytes_le,
        partition.guid.bytes_le,
        partition.first,
        partition.last,
        partition.attributes,
        partition.name.encode("utf-16-le"),
    )


def _partition(entry: bytes) -> Partition:
    kind, guid, first, last, attributes, name = _ENTRY.unpack(entry)
    return Partition(
        name.decode("utf-16-le", "replace").rstrip("\0"),
        UUID(bytes_le=kind),
        UUID(bytes_le=guid),
        first,
        last - first + 1,
        attributes,
    )


def _unreadable() -> UsageError:
    return UsageError("there is no partition table that could be read")
