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
from image.make import grub, oci, signing, tree
from image.make.programs import run
from image.make.signing import EPOCH_S
from image.make.source import Source
from image.node import settings, slotblocks
from image.node.manifest import Arch, Flavour
from image.node.release import Release
from image.node.slots import State

_KERNEL = "(name(vmlinuz)||name(initramfs))"


@dataclass(frozen=True)
class Wish:
    """What to build: out of which source, for which machine, into which file.

    `oci`: images for containers, and not one of a disk. Updates are taken that one of `update_keys`
    (Ed25519, public) signed.
    """

    out: Path
    source: Source
    arch: Arch = "x86_64"
    flavour: Flavour = "virt"
    oci: bool = False
    update_keys: tuple[bytes, ...] = ()
    sizes: Sizes = field(default_factory=Sizes)


def build(wish: Wish, say: Callable[[str], None]) -> None:
    """Build the image; raises EnvironmentFault or UsageError, and then leaves no half of one."""
    began = time.monotonic()

    def step(words: str) -> None:
        say(f"{time.monotonic() - began:5.1f} s  {words}")

    step("Asking for packages")
    packages = wish.source.fetch(wish.flavour)
    step("Asking for Python's packages")
    python = packages.wheels()
    with tempfile.TemporaryDirectory(prefix="covey-image-") as name:
        folder = Path(name)
        root = folder / "root"
        root.mkdir(mode=0o755)
        step(f"Unpacking {packages.count + len(python)} packages")
        tree.make(root, packages, python, folder / "board")
        if wish.oci:
            step("Packing the images")
            oci.write(root, wish.arch, EPOCH_S, wish.out)
            step(f"{wish.out} is built; it has {wish.out.stat().st_size / MIB:.0f} MiB")
            return
        signing.lay(root, Release(__version__, wish.arch, wish.update_keys, wish.flavour))
        step("Packing the root file system")
        squash(root, folder / "slot")
        step("Making the boot partition and the disk")
        loader = grub.make(folder, wish.arch, packages.grub(folder / "grub"))
        board = files_in(folder / "board")
        files = boot_files(folder, loader.efi) | board
        bootfiles.make(folder / "boot", wish.sizes.boot, files, EPOCH_S)
        parts = {"boot": folder / "boot", "slot-a": folder / "slot"}
        if loader.core:
            (folder / "core").write_bytes(loader.core)
            parts["bios"] = folder / "core"
        # A Raspberry Pi 3 finds its files by the MBR alone.
        write(wish.out, wish.arch, wish.sizes, parts, loader.boot_code, "boot" if board else "")
        signing.note_hash(wish.out)
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


def files_in(folder: Path) -> dict[str, Path]:
    """Return all files in a folder, by their paths in it; none where there is no folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path for path in found}


def boot_files(folder: Path, efi: Path) -> dict[str, Path]:
    """Return the boot partition's files by their paths in it; those that are new lie in a folder.

    The first start is a reset: it makes the data partition, and makes it as large as the disk.
    """
    blocks = slotblocks.fresh(State(reset=True))
    for name, block in zip(slotblocks.FILES, blocks, strict=True):
        (folder / name).write_bytes(block)
    (folder / "covey.toml").write_text(settings.sample().replace("\n", "\r\n"), newline="")
    return {
        f"EFI/BOOT/{efi.name}": efi,
        "covey.toml": folder / "covey.toml",
        "covey/grub.cfg": grub.BOOT / "grub.cfg",
        "covey/slots.cfg": grub.BOOT / "slots.cfg",
        **{f"covey/{name}": folder / name for name in slotblocks.FILES},
    }
