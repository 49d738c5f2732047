"""What lies where, and GUIDs that follow from what is in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.errors import UsageError
from image.disk import gpt
from image.disk.layout import MIB, Part, Sizes, plan

PARTS = {"boot": Part(33 * MIB, b"b" * 32), "slot-a": Part(5, b"s" * 32)}
SIZES = Sizes(boot=33 * MIB, slot=4 * MIB, data=2 * MIB)


def test_the_partitions() -> None:
    table = plan("x86_64", SIZES, PARTS)
    found = [(p.name, p.kind, p.first // 2048, p.sectors // 2048) for p in table.partitions]
    root = gpt.ROOTS["x86_64"]
    assert found == [
        ("bios", gpt.BIOS_BOOT, 1, 1),
        ("boot", gpt.ESP, 2, 33),
        ("slot-a", root, 35, 4),
        ("slot-b", root, 39, 4),
        ("data", gpt.LINUX, 43, 2),
    ]
    assert all(p.first % 2048 == p.sectors % 2048 == 0 for p in table.partitions)
    assert table.sectors == 46 * 2048
    assert table.last_usable >= table.partitions[-1].last
    other = plan("aarch64", SIZES, PARTS)
    assert {p.kind for p in other.partitions[2:4]} == {gpt.ROOTS["aarch64"]}


def test_nobody_mounts_a_slot_by_itself() -> None:
    attributes = [p.attributes for p in plan("x86_64", SIZES, PARTS).partitions]
    slot = gpt.READ_ONLY | gpt.NO_AUTOMOUNT
    assert attributes == [0, 0, slot, slot, gpt.NO_AUTOMOUNT]


def test_the_same_parts_have_the_same_guids() -> None:
    table = plan("x86_64", SIZES, PARTS)
    assert plan("x86_64", SIZES, dict(reversed(PARTS.items()))) == table
    guids = [table.guid, *(p.guid for p in table.partitions)]
    assert len(set(guids)) == 6
    assert {(guid.version, guid.variant) for guid in guids} == {(8, "specified in RFC 4122")}


def test_other_parts_have_other_guids() -> None:
    others = [
        plan("aarch64", SIZES, PARTS),
        plan("x86_64", replace(SIZES, data=3 * MIB), PARTS),
        plan("x86_64", SIZES, PARTS | {"slot-a": Part(5, b"t" * 32)}),
        plan("x86_64", SIZES, {"slot-b": PARTS["slot-a"], "boot": PARTS["boot"]}),
    ]
    assert len({table.guid for table in [plan("x86_64", SIZES, PARTS), *others]}) == 5


def test_what_cannot_be_laid_out_is_told() -> None:
    with pytest.raises(UsageError, match="'mips' is no architecture"):
        plan("mips", SIZES, PARTS)
    with pytest.raises(UsageError, match="no partition is for 'slot-c'"):
        plan("x86_64", SIZES, {"slot-c": PARTS["slot-a"]})
    large = Part(4 * MIB + 1, b"x" * 32)
    plan("x86_64", SIZES, {"slot-b": replace(large, size=4 * MIB)})
    with pytest.raises(UsageError, match="for partition slot-b has 4194305 bytes, and it 4194304"):
        plan("x86_64", SIZES, {"slot-b": large})
    with pytest.raises(UsageError, match="a slot partition of 5 bytes is no whole number"):
        Sizes(slot=5)
    with pytest.raises(UsageError, match="too small for FAT32"):
        Sizes(boot=32 * MIB)
