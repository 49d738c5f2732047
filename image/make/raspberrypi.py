"""Sets aside what a Raspberry Pi reads on the boot partition before GRUB. A shell.

    its firmware            bootcode.bin (Pi 3 alone), start.elf and fixup.dat, those with a 4
    config.txt              what the firmware starts: U-Boot, with the board's device tree
    u-boot.bin              a UEFI, which starts GRUB: from there on all is as on other machines
    bcm….dtb                the device trees of the kernel's package; the firmware fills in the
                            memory, the serial number and the network's address, so they lie here

The licences of what is not free stay beside it. Used by image/make alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from agent.errors import EnvironmentFault
from image.make.grub import BOOT
from image.make.source import Board

_FIRMWARE = ("bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat")
UBOOT = "u-boot.bin"
_FOLDERS = ("usr/lib/raspi-firmware", "usr/lib/u-boot")


def set_aside(root: Path, board: Board, boot: Path) -> None:
    """Move a board's files out of a root that was just unpacked into `boot`, as they lie there.

    Raises EnvironmentFault for what the packages do not have.
    """
    boot.mkdir()
    for name in _FIRMWARE:
        _move(root, f"{board.firmware}/{name}", boot / name)
    _move(root, board.uboot, boot / UBOOT)
    trees = sorted(root.glob(board.device_trees))
    if not trees:
        raise _lacking(board.device_trees)
    for tree in trees:
        tree.rename(boot / tree.name)
    for name, path in board.licences.items():
        _move(root, path, boot / name)
    for name, path in board.root_licences.items():
        _move(root, path, root / name)
    lines = [(BOOT / "config.txt").read_text(), *(f"{line}\n" for line in board.settings)]
    (boot / "config.txt").write_text("".join(lines))
    # The slots' state lies there as well, so it is GRUB's folder.
    (boot / "covey").mkdir()
    (boot / "covey/board.cfg").write_text(f'set line="{board.line},115200"\n')
    for folder in _FOLDERS:
        shutil.rmtree(root / folder, ignore_errors=True)


def _move(root: Path, path: str, to: Path) -> None:
    if not (root / path).is_file():
        raise _lacking(path)
    (root / path).rename(to)


def _lacking(path: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the packages have no {path}, which a Raspberry Pi starts with",
        hint="Name a mirror that has it, or build another flavour.",
    )
