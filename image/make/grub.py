"""Makes the boot loader's files from Debian's GRUB, for BIOS and for UEFI. A shell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.errors import EnvironmentFault
from image.disk.layout import FIRST_SECTOR
from image.make import grubcore
from image.make.programs import run

BOOT = Path(__file__).parents[1] / "boot"
_GRUB = Path("/usr/lib/grub")
_PACKAGES = {"i386-pc": "grub-pc-bin", "x86_64-efi": "grub-efi-amd64-bin"}
# What the configuration names, and what it takes to read our partitions.
_MODULES = (
    "part_gpt", "fat", "squash4", "xzio", "gzio", "normal", "configfile", "loadenv", "test",
    "search", "search_fs_file", "echo", "linux", "reboot", "halt", "sleep", "regexp", "serial",
    "terminal", "minicmd", "true",
)  # fmt: skip


@dataclass(frozen=True)
class Loader:
    """Boot code for the first sector, the core image for BIOS, and the program for UEFI."""

    boot_code: bytes
    core: bytes
    efi: Path


def missing() -> list[str]:
    """Return the packages with GRUB's images that are not there."""
    return [package for kind, package in _PACKAGES.items() if not (_GRUB / kind).is_dir()]


def make(folder: Path) -> Loader:
    """Return the loader; files are made in a folder. Raises EnvironmentFault."""
    for kind, package in _PACKAGES.items():
        if not (_GRUB / kind).is_dir():
            raise EnvironmentFault(
                f"GRUB's images for {kind} are not installed",
                hint=f"Install the package {package}.",
            )
    core, efi = folder / "core.img", folder / "BOOTX64.EFI"
    for kind, out, more in (
        ("i386-pc", core, ["biosdisk"]), ("x86_64-efi", efi, ["efi_gop", "efifwsetup"]),
    ):  # fmt: skip
        run(["grub-mkimage", "-O", kind, "-c", BOOT / "early.cfg", "-p", "/covey", "-o", out,
             *_MODULES, *more])  # fmt: skip
    boot = (_GRUB / "i386-pc" / "boot.img").read_bytes()
    return Loader(
        grubcore.boot_code(boot, FIRST_SECTOR),
        grubcore.core_image(core.read_bytes(), FIRST_SECTOR),
        efi,
    )
