"""Which of Alpine's packages the appliance is made of, and where Alpine has what. A shell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from agent.errors import EnvironmentFault
from image.make import foreign, grub
from image.make.alpine import building, repository
from image.make.alpine.index import Entry, Need
from image.make.alpine.resolve import resolve
from image.make.source import Board, Layout, Runnable

# For networks, and no more: all of the kernel's firmware has a gigabyte.
_FIRMWARE = (
    "ath10k", "ath11k", "ath9k_htc", "bnx2", "bnx2x", "brcm", "cypress", "e100", "intel",
    "mediatek", "mrvl", "other", "qca", "rtl_nic", "rtlwifi", "rtw88", "rtw89", "ti-connectivity",
    "tigon",
)  # fmt: skip
KERNELS = {
    "metal": ("linux-lts", *(f"linux-firmware-{name}" for name in _FIRMWARE)),
    "virt": ("linux-virt",),
    # linux-lts knows no Raspberry Pi.
    "raspberrypi": (
        "linux-rpi", "raspberrypi-bootloader", "raspberrypi-bootloader-doc", "u-boot-raspberrypi",
        "linux-firmware-brcm", "linux-firmware-cypress",
    ),
}  # fmt: skip
BOARDS = {
    "raspberrypi": Board(
        firmware="boot",
        uboot="usr/share/u-boot/rpi_arm64/u-boot.bin",
        # Of a Pi 3 and 4, by the names that the firmware has for them.
        device_trees="boot/bcm271[01]-rpi-*.dtb",
        line="ttyS0",
        settings=(),
        licences={"LICENCE.raspi-firmware.txt":
                  "usr/share/licenses/raspberrypi-bootloader/COPYING"},
        root_licences={},
    ),
}  # fmt: skip
WANTED = (
    "busybox-static", "openrc", "kmod",
    "iproute2", "nftables", "conntrack-tools", "wireguard-tools-wg", "wireguard-go",
    "e2fsprogs", "sfdisk", "partx", "dosfstools", "setpriv",
    "dropbear", "wpa_supplicant", "wireless-regdb",
    "python3",
    # Of wheels: libraries that they take from the system.
    "gmp", "libgomp", "libstdc++",
)  # fmt: skip
# What Python's packages without a wheel are built with.
BUILD = ("build-base", "cmake", "samurai", "linux-headers", "python3-dev", "gmp-dev")
# The image makes its own.
_WITHOUT = frozenset(("initramfs-generator",))


@dataclass(frozen=True)
class AlpinePackages:
    """Packages of a mirror that are in the cache."""

    mirror: repository.Mirror
    entries: list[Entry]
    everything: list[Entry]
    arch: str
    flavour: str
    cache: Path

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.entries)

    @property
    def layout(self) -> Layout:
        """Where they have what."""
        return Layout(
            self.arch, _python(self.entries), f"lib/ld-musl-{self.arch}.so.1", ("lib", "usr/lib"),
            "/bin/busybox", "bin/busybox.static", BOARDS.get(self.flavour),
        )  # fmt: skip

    def unpack(self, root: Path) -> None:
        """Unpack them, and have Python look where the image has its packages."""
        self.mirror.unpack(self.entries, root)
        packages = root / f"usr/lib/python{self.layout.python}/site-packages"
        packages.mkdir(parents=True, exist_ok=True)
        (packages / "covey.pth").write_text(f"/{foreign.PACKAGES}\n")

    def wheels(self) -> list[Path]:
        """Return Python's packages: PyPI's for musl, and those that are built here."""
        target = foreign.Target(self.layout.python, self.arch, f"musllinux_1_2_{self.arch}")
        found = foreign.ready(target, self.cache)
        tools = resolve(self.everything, map(Need, (*WANTED, *BUILD)), self.arch, _WITHOUT)
        stage = building.Stage(self.mirror, tools, self.cache, self.layout)
        return found + stage.wheels(foreign.sources(target, self.cache), target)

    def runnable(self, root: Path) -> Runnable:
        """Return that root: images of Alpine's are built on a machine of their architecture."""
        return Runnable(root, self.layout)

    def grub(self, folder: Path) -> Path:
        """Return this machine's."""
        return grub.IMAGES


class Alpine:
    """A mirror of Alpine's as a source."""

    def __init__(self, mirror: str, arch: str, cache: Path, keys: Path | None = None) -> None:
        """Trust Alpine's own keys, or only those in the folder `keys`."""
        trusted = repository.keys(keys or repository.PINNED)
        self._mirror = repository.Mirror(mirror, arch, cache / "apks", trusted)
        self._arch = arch
        self._cache = cache

    def fetch(self, flavour: str) -> AlpinePackages:
        """Return the packages for a flavour; raises EnvironmentFault."""
        everything = self._mirror.entries()
        wanted = map(Need, (*WANTED, *KERNELS[flavour]))
        entries = resolve(everything, wanted, self._arch, _WITHOUT)
        self._mirror.fetch(entries)
        return AlpinePackages(self._mirror, entries, everything, self._arch, flavour, self._cache)


def _python(entries: list[Entry]) -> str:
    """Return the version of Python, in two numbers."""
    version = next((entry.version for entry in entries if entry.name == "python3"), "")
    match = re.match(r"(3\.\d+)\.", version)
    if match is None:
        raise EnvironmentFault(f"Python's version {version!r} is none that is known")
    return match[1]
