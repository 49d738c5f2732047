"""Makes the boot loader's files from Debian's GRUB, for BIOS and for UEFI. A shell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.errors import EnvironmentFault
from image.disk.layout import FIRST_SECTOR
from image.make import grubcore
from image.make.programs import run

BOOT = Path(__file__).parents[1] / "boot"
# Where Debian has GRUB's images, by GRUB's words for the machines.
IMAGES = Path("/usr/lib/grub")
# What each architecture starts with: GRUB's word for it, Debian's package, the program's name.
PACKAGES = {
    "x86_64": {"i386-pc": "grub-pc-bin", "x86_64-efi": "grub-efi-amd64-bin"},
    "aarch64": {"arm64-efi": "grub-efi-arm64-bin"},
}
_EFI = {"x86_64": ("x86_64-efi", "BOOTX64.EFI"), "aarch64": ("arm64-efi", "BOOTAA64.EFI")}
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


def missing(arch: str, images: Path = IMAGES) -> list[str]:
    """Return the packages with GRUB's images that are not there."""
    return [package for kind, package in PACKAGES[arch].items() if not (images / kind).is_dir()]


def make(folder: Path, arch: str, images: Path = IMAGES) -> Loader:
    """Return the loader, of GRUB's images in a folder; files are made in another.

    Raises EnvironmentFault.
    """
    for package in missing(arch, images):
        raise EnvironmentFault(
            "GRUB's images are not installed", hint=f"Install the package {package}."
        )
    kind, name = _EFI[arch]
    efi = folder / name
    _mkimage(
        images / kind, efi, ["efi_gop", "efifwsetup"] if arch == "x86_64" else ["efi_gop", "fdt"]
    )
    if arch != "x86_64":
        return Loader(b"", b"", efi)
    core = folder / "core.img"
    _mkimage(images / "i386-pc", core, ["biosdisk"])
    boot = (images / "i386-pc" / "boot.img").read_bytes()
    return Loader(
        grubcore.boot_code(boot, FIRST_SECTOR),
        grubcore.core_image(core.read_bytes(), FIRST_SECTOR),
        efi,
    )


def _mkimage(images: Path, out: Path, more: list[str]) -> None:
    run(["grub-mkimage", "-O", images.name, "-d", images, "-c", BOOT / "early.cfg", "-p", "/covey",
         "-o", out, *_MODULES, *more])  # fmt: skip
