"""The boot partition: files that other tools read, and the same bytes whenever it is made."""

from __future__ import annotations

import os
import struct
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from gpt_tables import PATH, program

from agent.errors import EnvironmentFault, UsageError
from image.disk import bootfiles
from image.disk.layout import MIB, Sizes
from image.disk.write import write

EPOCH_S = 1_700_000_000
NEEDS_TOOLS = pytest.mark.skipif(not bootfiles.available(), reason="no dosfstools or mtools")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "one").write_text("# note\n")
    (folder / "two").write_bytes(b"\x4d\x5a" * 40_000)
    (folder / "three").write_bytes(b"#" * 1024)
    return {
        "covey.toml": folder / "one",
        "EFI/BOOT/BOOTX64.EFI": folder / "two",
        "grub/slots0.env": folder / "three",
    }


def tool(*command: object) -> bytes:
    environment = {"PATH": PATH, "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout


@NEEDS_TOOLS
def test_the_files_are_in_it(tmp_path: Path, files: dict[str, Path]) -> None:
    out = tmp_path / "boot.img"
    bootfiles.make(out, 33 * MIB, files, EPOCH_S)
    assert out.stat().st_size == 33 * MIB
    for name, path in files.items():
        assert tool("mtype", "-i", out, f"::{name}") == path.read_bytes()
    raw = out.read_bytes()
    assert raw[82:90] == b"FAT32   "
    assert raw[71:82] == b"COVEY      "
    if program("fsck.vfat"):
        tool("fsck.vfat", "-n", out)


@NEEDS_TOOLS
def test_the_files_are_read_out_of_a_whole_image(tmp_path: Path, files: dict[str, Path]) -> None:
    boot, out = tmp_path / "boot.img", tmp_path / "covey.img"
    bootfiles.make(boot, 33 * MIB, files, EPOCH_S)
    table = write(out, "aarch64", Sizes(33 * MIB, MIB, MIB), {"boot": boot})
    at = table.partitions[1].first * 512
    for name, path in files.items():
        assert tool("mtype", "-i", f"{out}@@{at}", f"::{name}") == path.read_bytes()


@NEEDS_TOOLS
def test_the_same_files_give_the_same_bytes(tmp_path: Path, files: dict[str, Path]) -> None:
    one, two = tmp_path / "one.img", tmp_path / "two.img"
    bootfiles.make(one, 33 * MIB, files, EPOCH_S)
    for path in files.values():
        os.utime(path, (5, 5))
        path.chmod(0o600)
    bootfiles.make(two, 33 * MIB, dict(reversed(files.items())), EPOCH_S)
    assert one.read_bytes() == two.read_bytes()


@NEEDS_TOOLS
def test_no_date_is_that_of_the_build(tmp_path: Path, files: dict[str, Path]) -> None:
    """Two builds within FAT's two seconds would not show it, so each date is looked at."""
    out = tmp_path / "boot.img"
    bootfiles.make(out, 33 * MIB, files, EPOCH_S)
    made = datetime.fromtimestamp(EPOCH_S, UTC)
    date = (made.year - 1980) << 9 | made.month << 5 | made.day
    time = made.hour << 11 | made.minute << 5 | made.second // 2
    raw = out.read_bytes()
    reserved, tables, sectors = (
        *struct.unpack_from("<HB", raw, 14),
        *struct.unpack_from("<I", raw, 36),
    )
    data = (reserved + tables * sectors) * 512
    entries = 0
    # Folders lie in clusters of one sector; the root's is the first.
    for at in range(data, data + 64 * 512, 32):
        entry = raw[at : at + 32]
        if not entry.startswith(
            (b"COVEY~1 TOM", b"EFI ", b"BOOT", b"GRUB", b"SLOTS0", b". ", b"..")
        ):
            continue
        created, read_on, _, changed_at, changed = struct.unpack_from("<HHHHH", entry, 16)
        assert {created, read_on, changed} <= {date, 0}, entry
        assert changed_at == time
        entries += 1
    assert entries >= 7


@NEEDS_TOOLS
def test_what_does_not_fit_is_told(tmp_path: Path, files: dict[str, Path]) -> None:
    files["EFI/BOOT/BOOTX64.EFI"].write_bytes(bytes(34 * MIB))
    with pytest.raises(EnvironmentFault, match=r"mcopy failed: .*full"):
        bootfiles.make(tmp_path / "boot.img", 33 * MIB, files, EPOCH_S)
    assert not (tmp_path / "boot.img").exists()


def test_a_tool_that_is_missing_is_named(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootfiles, "_PATH", str(tmp_path))
    assert not bootfiles.available()
    with pytest.raises(EnvironmentFault, match=r"mkfs\.vfat is not installed") as caught:
        bootfiles.make(tmp_path / "boot.img", 33 * MIB, files, EPOCH_S)
    assert "dosfstools" in caught.value.hint


def test_sizes_and_times_that_fat_cannot_have(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="no size of a boot partition"):
        bootfiles.make(tmp_path / "boot.img", 5, files, EPOCH_S)
    with pytest.raises(UsageError, match="before 1980"):
        bootfiles.make(tmp_path / "boot.img", 33 * MIB, files, 0)
