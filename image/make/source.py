"""What a source of packages is: Debian's, or Alpine's. All else of the image is the same for both.

A core. Used by assemble.py and tree.py; debian.py and alpine/ are the sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Linux' words for the architectures, and Debian's.
ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
# Kernels for a machine of its own, or for one in another (no drivers but those that it needs).
FLAVOURS = ("metal", "virt")


@dataclass(frozen=True)
class Layout:
    """Where a source has what the image's making has to know; paths are below the root.

    `python` is a version like 3.11, `loader` and `libraries` run a program of the root here,
    `shell` is what /bin/sh is a link to, and `busybox` the one that is linked statically.
    """

    arch: str
    python: str
    loader: str
    libraries: tuple[str, ...]
    shell: str
    busybox: str


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
        """Return the packages for a machine of its own ("metal") or a virtual one ("virt").

        Raises EnvironmentFault for what cannot be had, or is not what it should be.
        """
