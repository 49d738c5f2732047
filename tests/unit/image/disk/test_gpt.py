"""The partition table: both copies, their checksums, the protective MBR, and what is refused."""

from __future__ import annotations

from uuid import UUID

import pytest
from gpt_tables import header, mbr, partitions
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import UsageError
from image.disk.gpt import (
    ESP,
    FIRST_USABLE,
    LINUX,
    READ_ONLY,
    SECTOR_BYTES,
    TAIL_SECTORS,
    Partition,
    Table,
)

DISK = UUID(int=0x1234)
SECTORS = 4096


def partition(name: str = "p", first: int = 64, sectors: int = 8, attributes: int = 0) -> Partition:
    return Partition(name, LINUX, UUID(int=first), first, sectors, attributes)


def image(table: Table, boot_code: bytes = b"") -> bytes:
    head, tail = table.head(boot_code), table.tail()
    assert len(head) == FIRST_USABLE * SECTOR_BYTES
    assert len(tail) == TAIL_SECTORS * SECTOR_BYTES
    return head + bytes(table.sectors * SECTOR_BYTES - len(head) - len(tail)) + tail


def test_both_copies_say_the_same() -> None:
    parts = (
        Partition("boot", ESP, UUID(int=7), 100, 50),
        Partition("grün", LINUX, UUID(int=8), 34, 66, READ_ONLY),
    )
    raw = image(Table(DISK, SECTORS, parts))
    rows = [(p.name, p.kind, p.guid, p.first, p.last, p.attributes) for p in parts]
    assert partitions(raw, 1) == rows
    assert partitions(raw, SECTORS - 1) == rows
    first, second = header(raw, 1), header(raw, SECTORS - 1)
    assert (first["other"], second["other"]) == (SECTORS - 1, 1)
    for found in (first, second):
        assert UUID(bytes_le=found["guid"]) == DISK
        assert (found["first"], found["last"]) == (34, SECTORS - 34)
        assert (found["revision"], found["size"], found["reserved"]) == (0x10000, 92, 0)
    assert (first["entries"], second["entries"]) == (2, SECTORS - 33)


def test_the_protective_mbr_covers_the_disk() -> None:
    raw = Table(DISK, SECTORS, ()).head(b"\xeb" * 440)
    assert raw[:440] == b"\xeb" * 440
    assert raw[446:462] == bytes.fromhex("00000200eeffffff01000000") + (4095).to_bytes(4, "little")
    assert raw[462:512] == bytes(48) + b"\x55\xaa"
    large = Table(DISK, 1 << 40, ()).head()
    assert large[458:462] == b"\xff" * 4


def test_a_hybrid_mbr_names_the_fat_partition_first() -> None:
    parts = (partition("bios", 34, 6), partition("boot", 40, 60), partition("data", 100))
    table = Table(DISK, SECTORS, parts)
    raw = table.head(b"\xeb" * 440, "boot")
    assert raw[:440] == b"\xeb" * 440
    fat = bytes.fromhex("00feffff0cfeffff") + (40).to_bytes(4, "little") + bytes([60, 0, 0, 0])
    guard = bytes.fromhex("00000200eefeffff01000000") + (39).to_bytes(4, "little")
    assert raw[440:512] == bytes(6) + fat + guard + bytes(32) + b"\x55\xaa"
    assert mbr(raw) == [(0x0C, 40, 60), (0xEE, 1, 39)]
    # All else is as it was, and is read as it was.
    assert raw[512:] == table.head(b"")[512:]
    assert Table.read(raw) == table


def test_boot_code_has_its_room() -> None:
    with pytest.raises(UsageError, match="at most 440 bytes"):
        Table(DISK, SECTORS, ()).head(bytes(441))


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ((partition(), partition("q", 71)), "'q' is empty, or begins before"),
        ((partition("q", 71), partition()), "'q' is empty, or begins before"),
        ((partition(first=33),), "begins before another one ends"),
        ((partition(sectors=0),), "is empty"),
        ((partition("x" * 37),), "at most 36 characters"),
        ((partition("x" * 35 + "🦆"),), "at most 36 characters"),
        ((partition(first=SECTORS - 34, sectors=2),), "the disk is too small"),
        (tuple(partition(first=34 + i, sectors=1) for i in range(129)), "at most 128"),
    ],
)
def test_what_no_firmware_would_read_is_refused(parts: tuple[Partition, ...], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Table(DISK, SECTORS, parts)


def test_a_disk_that_is_just_large_enough() -> None:
    last = partition(first=SECTORS - 34, sectors=1)
    assert partitions(image(Table(DISK, SECTORS, (last,))), 1)[0][3] == SECTORS - 34


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), max_size=12))
def test_any_partitions_are_read_back(gaps: list[tuple[int, int]]) -> None:
    at, parts = FIRST_USABLE, []
    for gap, sectors in gaps:
        parts.append(partition(f"p{at}", at + gap, sectors))
        at += gap + sectors
    raw = image(Table(DISK, SECTORS, tuple(parts)))
    rows = [(p.name, p.kind, p.guid, p.first, p.last, 0) for p in parts]
    assert partitions(raw, 1) == partitions(raw, SECTORS - 1) == rows


@given(st.lists(st.integers(0, 3), max_size=8), st.binary(max_size=440))
def test_what_was_written_is_read(sizes: list[int], boot_code: bytes) -> None:
    parts = [
        partition(f"p{at}", FIRST_USABLE + 4 * at, size + 1, READ_ONLY)
        for at, size in enumerate(sizes)
    ]
    table = Table(DISK, SECTORS, tuple(parts))
    assert Table.read(table.head(boot_code)) == table


@pytest.mark.parametrize("at", [512, 512 + 24, 512 + 32, 512 + 72, 1024, 1024 + 40, 17407])
def test_a_table_with_a_bit_that_is_another_is_none(at: int) -> None:
    raw = bytearray(Table(DISK, SECTORS, (partition(),)).head())
    raw[at] ^= 1
    with pytest.raises(UsageError, match="no partition table"):
        Table.read(bytes(raw))
    with pytest.raises(UsageError, match="no partition table"):
        Table.read(bytes(raw[:at]))
