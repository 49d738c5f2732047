"""A Raspberry Pi's boot files: out of the packages, onto the boot partition, and in no root."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.errors import EnvironmentFault
from image.disk import bootfiles
from image.disk.layout import MIB
from image.make import assemble, packages, raspberrypi, tree
from image.make.alpine import source
from image.make.source import Board, Layout

DEBIAN, ALPINE = packages.BOARDS["raspberrypi"], source.BOARDS["raspberrypi"]
FIRMWARE = ("bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat")
KERNEL = "usr/lib/linux-image-6.1.0-57-arm64"
TREES = {
    "debian": [f"{KERNEL}/broadcom/bcm2837-rpi-3-b.dtb", f"{KERNEL}/broadcom/bcm2711-rpi-4-b.dtb"],
    "alpine": ["boot/bcm2710-rpi-3-b.dtb", "boot/bcm2711-rpi-4-b.dtb"],
}
# Of other boards, and what is larger than what a Pi needs.
OTHERS = {
    "debian": [f"{KERNEL}/broadcom/stingray/bcm958742k.dtb", f"{KERNEL}/rockchip/rk3399.dtb",
               "usr/lib/raspi-firmware/start_x.elf", "usr/lib/u-boot/rpi_4/u-boot.bin"],
    "alpine": ["boot/bcm2835-rpi-zero.dtb", "boot/bcm2712-rpi-5-b.dtb"],
}  # fmt: skip


def unpacked(root: Path, kind: str, board: Board) -> Path:
    """Return a root with what a source's packages have; each file says where it was."""
    licences = (*board.licences.values(), *board.root_licences.values())
    firmware = [f"{board.firmware}/{name}" for name in FIRMWARE]
    for name in (*firmware, board.uboot, *TREES[kind], *OTHERS[kind], *licences):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "lib/firmware").mkdir(parents=True, exist_ok=True)
    return root


@pytest.mark.parametrize(("kind", "board"), [("debian", DEBIAN), ("alpine", ALPINE)])
def test_what_it_starts_from(tmp_path: Path, kind: str, board: Board) -> None:
    root, boot = unpacked(tmp_path / "root", kind, board), tmp_path / "board"
    raspberrypi.set_aside(root, board, boot)
    files = assemble.files_in(boot)
    assert files.keys() == {
        *FIRMWARE, "u-boot.bin", "config.txt", "covey/board.cfg", *board.licences,
        *(Path(name).name for name in TREES[kind]),
    }  # fmt: skip
    assert files["start4.elf"].read_text() == f"{board.firmware}/start4.elf"
    assert files["u-boot.bin"].read_text() == board.uboot
    for name, path in board.root_licences.items():
        assert (root / name).read_text() == path
    # Nothing of it is in the root, where it would only be larger.
    assert not list(root.rglob("*.elf")) and not list(root.rglob("u-boot.bin"))


def settings(boot: Path) -> dict[str, str]:
    lines = (boot / "config.txt").read_text().splitlines()
    return dict(line.split("=") for line in lines if not line.startswith("#"))


def test_the_firmware_starts_uboot_in_64_bits_with_linux_own_device_trees(tmp_path: Path) -> None:
    raspberrypi.set_aside(unpacked(tmp_path / "a", "debian", DEBIAN), DEBIAN, tmp_path / "debian")
    wanted = {"arm_64bit": "1", "kernel": "u-boot.bin", "enable_uart": "1"}
    assert settings(tmp_path / "debian") == {**wanted, "upstream_kernel": "1"}
    raspberrypi.set_aside(unpacked(tmp_path / "b", "alpine", ALPINE), ALPINE, tmp_path / "alpine")
    # Alpine's kernel is that of the Pi's makers, and has their names.
    assert settings(tmp_path / "alpine") == wanted


def test_grub_and_the_screen_use_the_line_that_leads_outside(tmp_path: Path) -> None:
    raspberrypi.set_aside(unpacked(tmp_path / "a", "debian", DEBIAN), DEBIAN, tmp_path / "board")
    assert (tmp_path / "board/covey/board.cfg").read_text() == 'set line="ttyS1,115200"\n'
    layout = Layout("aarch64", "3.11", "", (), "dash", "bin/busybox")
    assert layout.line == "ttyAMA0"
    board = Layout("aarch64", "3.11", "", (), "dash", "bin/busybox", DEBIAN)
    assert board.line == "ttyS1"


@pytest.mark.parametrize(
    "lacking", ["usr/lib/raspi-firmware/start4.elf", DEBIAN.uboot, *DEBIAN.licences.values()]
)
def test_what_the_packages_lack_is_named(tmp_path: Path, lacking: str) -> None:
    root = unpacked(tmp_path / "root", "debian", DEBIAN)
    (root / lacking).unlink()
    with pytest.raises(EnvironmentFault, match=f"have no {lacking}, which a Raspberry Pi"):
        raspberrypi.set_aside(root, DEBIAN, tmp_path / "board")


def test_a_kernel_without_its_device_trees(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "root", "debian", DEBIAN)
    for name in TREES["debian"]:
        (root / name).unlink()
    with pytest.raises(EnvironmentFault, match=r"have no .*bcm2\*-rpi-\*\.dtb"):
        raspberrypi.set_aside(root, DEBIAN, tmp_path / "board")


def test_device_trees_of_other_boards_leave_the_root(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "root", "debian", DEBIAN)
    tree._trim(root, Layout("aarch64", "3.11", "", (), "dash", "bin/busybox"))
    assert not list(root.rglob("*.dtb"))


@pytest.mark.skipif(not bootfiles.available(), reason="no dosfstools or mtools")
def test_a_fat_partition_shows_them_beside_grub(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "root", "debian", DEBIAN)
    raspberrypi.set_aside(root, DEBIAN, tmp_path / "board")
    (tmp_path / "BOOTAA64.EFI").write_bytes(b"MZ")
    files = assemble.boot_files(tmp_path, tmp_path / "BOOTAA64.EFI")
    board = assemble.files_in(tmp_path / "board")
    assert not files.keys() & board.keys()
    out = tmp_path / "boot.img"
    bootfiles.make(out, 33 * MIB, files | board, 1_700_000_000)
    said = subprocess.run(
        ["mdir", "-b", "-/", "-i", out, "::"], env={**bootfiles._ENVIRONMENT, "PATH": "/usr/bin"},
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    shown = {line.removeprefix("::/") for line in said.splitlines() if not line.endswith("/")}
    assert shown == files.keys() | board.keys()
