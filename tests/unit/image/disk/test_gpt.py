"""The partition table: both copies, their checksums, the protective MBR, and what is refused."""

from __future__ import annotations

from uuid import UUID

import pytest
from gpt_tables import header, partitions
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import StateError, UsageError
from image.disk.gpt import (
    ESP,
    FIRST_USABLE,
    LINUX,
    READ_ONLY,
    SECTOR_BYTES,
    TAIL_SECTORS,
    Partition,
    Table,
    extents,
)
from image.disk.layout import Sizes, plan

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


def test_where_partitions_lie_is_read_back_from_a_disks_head() -> None:
    table = plan("x86_64", Sizes(), {})
    found = extents(table.head())
    assert found == {one.name: (one.first, one.sectors) for one in table.partitions}
    for none in (b"", bytes(34 * SECTOR_BYTES)):
        with pytest.raises(StateError, match="no GUID partition table"):
            extents(none)
