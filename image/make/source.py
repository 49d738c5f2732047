"""What a source of packages is: Debian's, or Alpine's. All else of the image is the same for both.

A core. Used by assemble.py and tree.py; debian.py and alpine/ are the sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

from image.node.manifest import Flavour

# Linux' words for the architectures, and Debian's.
ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
# For a machine of its own, for one in another (no drivers but those that it needs), or for a
# Raspberry Pi, which starts otherwise and takes firmware that is not free.
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
# Linux' names of the first serial line.
LINES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}


@dataclass(frozen=True)
class Board:
    """Where packages have what a board's firmware reads before GRUB; paths are below the root.

    `firmware` is a folder, `device_trees` a pattern of files, `uboot` the UEFI that is started,
    `settings` are lines of config.txt. `line` is Linux' name of the serial line that leads outside.
    `licences` are those of the boot files, `root_licences` those of what stays in the root; they
    are paths by the names that they get.
    """

    firmware: str
    uboot: str
    device_trees: str
    line: str
    settings: tuple[str, ...]
    licences: Mapping[str, str]
    root_licences: Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """Where a source has what the image's making has to know; paths are below the root.

    `python` is a version like 3.11, `loader` and `libraries` run a program of the root here,
    `shell` is what /bin/sh is a link to, and `busybox` the one that is linked statically. `board`
    is for a flavour that does not start from firmware of its own.
    """

    arch: str
    python: str
    loader: str
    libraries: tuple[str, ...]
    shell: str
    busybox: str
    board: Board | None = None

    @property
    def line(self) -> str:
        """Linux' name of the serial line on which the machine speaks."""
        return self.board.line if self.board else LINES[self.arch]


@dataclass(frozen=True)
class Runnable:
    """A root whose Python and busybox run on this machine, and are those of the image's packages.

    That is the image's own root, or that of the same packages for this machine's architecture.
    """

    root: Path
    layout: Layout


class Packages(Protocol):
    """Packages that were fetched and verified."""

    @property
    def count(self) -> int:
        """How many they are."""

    @property
    def layout(self) -> Layout:
        """Where they have what."""

    def unpack(self, root: Path) -> None:
        """Unpack them into an empty folder; raises EnvironmentFault."""

    def wheels(self) -> list[Path]:
        """Return Python's packages for them, as wheels; raises EnvironmentFault."""

    def runnable(self, root: Path) -> Runnable:
        """Return what runs here, for a root that they were unpacked into; another lies beside it.

        Raises EnvironmentFault.
        """

    def grub(self, folder: Path) -> Path:
        """Return the folder with GRUB's images, by GRUB's words for the machines.

        Those that are no package of this machine are unpacked into `folder`.
        """


class Source(Protocol):
    """Where packages come from."""

    def fetch(self, flavour: str) -> Packages:
        """Return the packages for one of FLAVOURS.

        Raises EnvironmentFault for what cannot be had, or is not what it should be.
        """
