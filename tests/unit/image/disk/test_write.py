"""The image: parts where the table says, sparse, the same bytes each time, or no image."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from gpt_tables import PATH, header, mbr, partitions, program, sectors_of

from agent.errors import EnvironmentFault, UsageError
from image.disk.layout import MIB, Sizes
from image.disk.write import write

SIZES = Sizes(boot=33 * MIB, slot=2 * MIB, data=MIB)


@pytest.fixture
def parts(tmp_path: Path) -> Mapping[str, Path]:
    folder = tmp_path / "parts"
    folder.mkdir()
    contents = {
        "bios": b"\x52" * 700,
        "boot": bytes(MIB) + b"fat" + bytes(2 * MIB) + b"\1",
        "slot-a": bytes(range(256)) * 4096 + b"end",
        "data": b"x" * MIB,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def test_each_part_is_where_the_table_says(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    out = tmp_path / "covey.img"
    table = write(out, "x86_64", SIZES, parts, b"\xeb\x63")
    raw = out.read_bytes()
    rows = [(p.name, p.kind, p.guid, p.first, p.last, p.attributes) for p in table.partitions]
    assert partitions(raw, 1) == partitions(raw, sectors_of(out) - 1) == rows
    assert raw[:3] == b"\xeb\x63\0"
    for name, _, _, first, last, _ in rows:
        content = parts[name].read_bytes() if name in parts else b""
        assert raw[first * 512 : (last + 1) * 512] == content.ljust((last - first + 1) * 512, b"\0")
    assert out.stat().st_mode & 0o777 == 0o644


def test_the_same_parts_give_the_same_bytes(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    first, second = tmp_path / "one.img", tmp_path / "elsewhere" / "two.img"
    second.parent.mkdir()
    write(first, "x86_64", SIZES, parts)
    for path in parts.values():
        os.utime(path, (1, 1))
    write(second, "x86_64", SIZES, dict(reversed(parts.items())))
    assert first.read_bytes() == second.read_bytes()
    parts["data"].write_bytes(b"y")
    write(second, "x86_64", SIZES, parts)
    assert header(first.read_bytes(), 1)["guid"] != header(second.read_bytes(), 1)["guid"]


def test_zeros_take_no_room(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    out = tmp_path / "covey.img"
    write(out, "x86_64", SIZES, parts)
    used = out.stat().st_blocks * 512
    content = sum(1 for path in parts.values() for _ in range(0, path.stat().st_size, 4096))
    assert out.stat().st_size == 41 * MIB
    # tmpfs and ext4 both keep holes; others may round up, but never to all of it.
    assert used < content * 4096 + 4 * MIB


def test_an_image_that_cannot_be_made_leaves_what_was_there(
    tmp_path: Path, parts: Mapping[str, Path]
) -> None:
    out = tmp_path / "covey.img"
    out.write_bytes(b"old")
    with pytest.raises(UsageError, match="at most 440"):
        write(out, "x86_64", SIZES, parts, bytes(441))
    missing = {**parts, "slot-b": tmp_path / "gone"}
    with pytest.raises(EnvironmentFault, match=r"cannot be made: .*gone: No such file"):
        write(out, "x86_64", SIZES, missing)
    with pytest.raises(EnvironmentFault, match="No such file"):
        write(tmp_path / "no" / "covey.img", "x86_64", SIZES, parts)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["covey.img", "parts"]


@pytest.mark.skipif(not program("sgdisk"), reason="sgdisk is not installed")
@pytest.mark.parametrize("fat", ["", "boot"])
def test_sgdisk_finds_no_fault(tmp_path: Path, parts: Mapping[str, Path], fat: str) -> None:
    out = tmp_path / "covey.img"
    write(out, "x86_64", SIZES, parts, fat=fat)
    done = subprocess.run(
        ["sgdisk", "-v", out], env={"PATH": PATH}, check=False, capture_output=True, text=True
    )
    assert "No problems found" in done.stdout, done.stdout + done.stderr
    assert "Caution" not in done.stdout
    shown = subprocess.run(
        ["sgdisk", "-p", out], env={"PATH": PATH}, check=True, capture_output=True, text=True
    ).stdout
    names = [line.split()[-1] for line in shown.splitlines() if line.strip()[:1].isdigit()]
    assert names == ["bios", "boot", "slot-a", "slot-b", "data"]


@pytest.mark.skipif(not program("sfdisk"), reason="sfdisk is not installed")
@pytest.mark.parametrize("fat", ["", "boot"])
def test_sfdisk_finds_no_fault(tmp_path: Path, parts: Mapping[str, Path], fat: str) -> None:
    out = tmp_path / "covey.img"
    write(out, "x86_64", SIZES, parts, fat=fat)
    done = subprocess.run(
        ["sfdisk", "--verify", out], env={"PATH": PATH}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No errors detected" in done.stdout


def sfdisk(*words: object, said: str = "") -> str:
    return subprocess.run(
        ["sfdisk", *map(str, words)], env={"PATH": PATH}, check=True, capture_output=True,
        text=True, input=said,
    ).stdout  # fmt: skip


@pytest.mark.skipif(not program("sfdisk"), reason="sfdisk is not installed")
def test_a_firmware_that_reads_the_mbr_alone_finds_the_boot_partition(
    tmp_path: Path, parts: Mapping[str, Path]
) -> None:
    out = tmp_path / "covey.img"
    table = write(out, "aarch64", SIZES, parts, fat="boot")
    boot = table.partitions[1]
    found: list[dict[str, Any]] = json.loads(sfdisk("-J", "-Y", "dos", out))["partitiontable"][
        "partitions"
    ]
    assert [(each["start"], each["size"], each["type"]) for each in found] == [
        (boot.first, boot.sectors, "c"), (1, boot.first - 1, "ee"),
    ]  # fmt: skip
    # Whoever reads both takes the other table.
    whole = json.loads(sfdisk("-J", out))["partitiontable"]
    assert whole["label"] == "gpt" and len(whole["partitions"]) == 5


@pytest.mark.skipif(not program("sfdisk"), reason="sfdisk is not installed")
def test_the_mbr_stays_when_the_data_partition_grows(
    tmp_path: Path, parts: Mapping[str, Path]
) -> None:
    """What the appliance does at its first start, on a disk that is larger than the image."""
    out = tmp_path / "covey.img"
    table = write(out, "aarch64", SIZES, parts, fat="boot")
    before = mbr(out.read_bytes()[:512])
    os.truncate(out, out.stat().st_size + 64 * MIB)
    sfdisk("-q", "--no-tell-kernel", "--relocate", "gpt-bak-std", out)
    sfdisk("-q", "--no-reread", "--no-tell-kernel", "-N", 5, out, said=", +\n")
    raw = out.read_bytes()
    assert mbr(raw) == before
    (grown,) = [row for row in partitions(raw, 1) if row[0] == "data"]
    assert grown[4] > table.partitions[4].last + 63 * 2048
    assert partitions(raw, sectors_of(out) - 1) == partitions(raw, 1)
