"""GRUB's images know where they are on the disk."""

from __future__ import annotations

import struct

import pytest

from agent.errors import EnvironmentFault
from image.disk.layout import FIRST_SECTOR, Sizes, plan
from image.make import grubcore

BOOT = b"\xeb\x63" + bytes(508) + b"\x55\xaa"


def test_the_core_is_where_the_first_partition_begins() -> None:
    assert plan("x86_64", Sizes(), {}).partitions[0].first == FIRST_SECTOR


def test_the_boot_code_names_the_sector_of_the_core() -> None:
    code = grubcore.boot_code(BOOT, 2048)
    assert len(code) == 440
    assert struct.unpack_from("<Q", code, 0x5C) == (2048,)
    assert code[0x66:0x68] == b"\x90\x90"
    assert code[:2] == BOOT[:2]


def test_the_core_lists_the_sectors_behind_its_first() -> None:
    core = grubcore.core_image(b"\x01" * 1300, 2048)
    assert len(core) == 3 * 512
    assert struct.unpack_from("<QHH", core, 500) == (2049, 2, 0x820)
    assert core[512:1300] == b"\x01" * 788


@pytest.mark.parametrize("boot", [b"", BOOT[:-1], BOOT[:-2] + b"\0\0"])
def test_what_is_no_boot_sector_is_refused(boot: bytes) -> None:
    with pytest.raises(EnvironmentFault, match="no boot sector"):
        grubcore.boot_code(boot, 2048)


def test_a_core_of_one_sector_is_none() -> None:
    with pytest.raises(EnvironmentFault, match="too short"):
        grubcore.core_image(b"x" * 512, 2048)
