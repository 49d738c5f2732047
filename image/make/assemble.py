"""Builds the whole disk image: tree, squashfs, boot partition, GRUB, table. A shell."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent import __version__
from image.disk import bootfiles
from image.disk.layout import MIB, Sizes
from image.disk.write import write
from image.make import debian, grub, signing, tree, wheels
from image.make.programs import run
from image.node import settings, slotblocks
from image.node.release import Release
from image.node.slots import State

# What everything in the image is dated; a build need not know when its version was made.
EPOCH_S = 1_767_225_600
_KERNEL = "(name(vmlinuz)||name(initramfs))"


@dataclass(frozen=True)
class Wish:
    """What to build: from which mirror ("": this machine's), into which file, with which cache.

    `llama_cache` is where `make` keeps llama-cpp-python's wheel, `flavour` one of `KERNELS`;
    updates are taken that one of `update_keys` (Ed25519, public) signed.
    """

    out: Path
    cache: Path
    llama_cache: Path
    mirror: str = ""
    flavour: str = "virt"
    update_keys: tuple[bytes, ...] = ()
    sizes: Sizes = field(default_factory=Sizes)


def build(wish: Wish, say: Callable[[str], None]) -> None:
    """Build the image; raises EnvironmentFault or UsageError, and then leaves no half of one."""
    began = time.monotonic()

    def step(words: str) -> None:
        say(f"{time.monotonic() - began:5.1f} s  {words}")

    step("Asking for packages")
    apt = debian.Apt(wish.cache, wish.mirror)
    debs = apt.fetch(apt.plan(wish.flavour))
    step("Asking for Python's packages")
    python = wheels.fetch(tree.REPOSITORY / "requirements/runtime.txt", wish.cache)
    python.append(wheels.llama(tree.REPOSITORY, wish.llama_cache))
    with tempfile.TemporaryDirectory(prefix="covey-image-") as name:
        folder = Path(name)
        root = folder / "root"
        root.mkdir(mode=0o755)
        step(f"Unpacking {len(debs) + len(python)} packages")
        tree.make(root, debs, python)
        signing.lay(root, Release(__version__, "x86_64", wish.update_keys))
        step("Packing the root file system")
        squash(root, folder / "slot")
        step("Making the boot partition and the disk")
        loader = grub.make(folder)
        (folder / "core").write_bytes(loader.core)
        bootfiles.make(folder / "boot", wish.sizes.boot, boot_files(folder, loader.efi), EPOCH_S)
        parts = {"bios": folder / "core", "boot": folder / "boot", "slot-a": folder / "slot"}
        write(wish.out, "x86_64", wish.sizes, parts, loader.boot_code)
        size = (folder / "slot").stat().st_size
    step(f"{wish.out} is built; a slot's content has {size / MIB:.0f} MiB")


def squash(root: Path, out: Path) -> None:
    """Pack a tree; kernel and initramfs, which are compressed already, stay as they are.

    Of what the kernel and GRUB 2.06 both read, gzip takes a third of xz' time for a quarter more.
    """
    run(
        ["mksquashfs", root, out, "-quiet", "-no-progress", "-noappend", "-comp", "gzip",
         "-Xcompression-level", "6",
         "-b", "256K", "-all-root", "-mkfs-time", str(EPOCH_S), "-all-time", str(EPOCH_S),
         "-action", f"uncompressed@{_KERNEL}",
         "-p", "/dev/console c 600 0 0 5 1", "-p", "tmp m 1777 0 0", "-p", "root m 700 0 0",
         "-p", "etc/shadow m 600 0 0"],
    )  # fmt: skip


def boot_files(folder: Path, efi: Path) -> dict[str, Path]:
    """Return the boot partition's files by their paths in it; those that are new lie in a folder.

    The first start is a reset: it makes the data partition, and makes it as large as the disk.
    """
    blocks = slotblocks.fresh(State(reset=True))
    for name, block in zip(slotblocks.FILES, blocks, strict=True):
        (folder / name).write_bytes(block)
    (folder / "covey.toml").write_text(settings.sample().replace("\n", "\r\n"), newline="")
    return {
        "EFI/BOOT/BOOTX64.EFI": efi,
        "covey.toml": folder / "covey.toml",
        "covey/grub.cfg": grub.BOOT / "grub.cfg",
        "covey/slots.cfg": grub.BOOT / "slots.cfg",
        **{f"covey/{name}": folder / name for name in slotblocks.FILES},
    }
