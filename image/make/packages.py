"""Which of Debian's packages the appliance is made of. A core.

apt says what the wanted ones depend on. No script of any package runs, so what only scripts and
people need is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.errors import EnvironmentFault
from image.make.source import ARCHES, Board

# By Debian's word for the architecture.
KERNELS = {
    flavour: {arch: f"linux-image-{kind}{arch}" for arch in ARCHES.values()}
    for flavour, kind in (("metal", ""), ("virt", "cloud-"), ("raspberrypi", ""))
}
# What a flavour's machines do not start without, or have no wifi without.
FIRMWARE = {"raspberrypi": ("raspi-firmware", "u-boot-rpi", "firmware-brcm80211")}
# Where Debian has it, beside main: it may be passed on, and nobody may change it.
COMPONENTS = {"raspberrypi": ("non-free-firmware",)}
BOARDS = {
    "raspberrypi": Board(
        firmware="usr/lib/raspi-firmware",
        # One for all of them from the Pi 3 to the Pi 4.
        uboot="usr/lib/u-boot/rpi_arm64/u-boot.bin",
        device_trees="usr/lib/linux-image-*/broadcom/bcm2*-rpi-*.dtb",
        # The other one speaks with the board's Bluetooth.
        line="ttyS1",
        settings=("# The device trees have the names that they have in Linux.",
                  "upstream_kernel=1"),
        licences={"LICENCE.raspi-firmware.txt": "usr/share/doc/raspi-firmware/copyright",
                  "LICENCE.u-boot.txt": "usr/share/doc/u-boot-rpi/copyright"},
        root_licences={"lib/firmware/LICENCE.txt": "usr/share/doc/firmware-brcm80211/copyright"},
    ),
}  # fmt: skip
WANTED = (
    "busybox-static", "openrc", "kmod", "dash",
    "iproute2", "nftables", "conntrack", "wireguard-tools",
    "e2fsprogs", "fdisk", "util-linux", "dosfstools", "netbase",
    "python3.11",
    "dropbear-bin", "wpasupplicant", "wireless-regdb",
    # For containers, where the host's kernel may have no WireGuard.
    "wireguard-go",
    # Of wheels: libraries that they take from the system.
    "libgmp10", "libgomp1", "libstdc++6",
)  # fmt: skip
# The C library and what links to it come with others; these are for scripts, logins and builds.
_LEFT_OUT = frozenset((
    "adduser", "coreutils", "cpio", "debconf", "debianutils", "dpkg", "initramfs-tools",
    "initramfs-tools-core", "insserv", "klibc-utils", "libdb5.3", "libklibc", "libnsl2",
    "libpam-modules", "libpam-modules-bin", "libsemanage-common", "libsemanage2", "libsepol2",
    "linux-base", "logsave", "media-types", "passwd", "readline-common", "tar",
    "udev", "util-linux-extra",
    *(name for kernels in KERNELS.values() for name in kernels.values()),
))  # fmt: skip
_INSTALLED = re.compile(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) [^)]*\[(\S+)\]\)", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """One package; `arch` is Debian's word for it, or all."""

    name: str
    version: str
    arch: str

    @property
    def file(self) -> str:
        """The name that apt gives its file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.arch}.deb"

    @property
    def request(self) -> str:
        """How apt is asked for just this."""
        return (
            f"{self.name}:{self.arch}={self.version}"
            if self.arch != "all"
            else (f"{self.name}={self.version}")
        )


def wanted(flavour: str, arch: str) -> tuple[str, ...]:
    """Return the names of what an image is made of; `arch` is Debian's word."""
    return (KERNELS[flavour][arch], *FIRMWARE.get(flavour, ()), *WANTED)


def chosen(simulated: str) -> tuple[Package, ...]:
    """Return what `apt-get install -s` says it would install, by name, less what is left out.

    Raises EnvironmentFault where it names nothing, since then its output has another form.
    """
    found = [Package(*match.groups()) for match in _INSTALLED.finditer(simulated)]
    if not found:
        raise EnvironmentFault("apt-get does not say what it would install")
    kept = {package for package in found if package.name not in _LEFT_OUT}
    return tuple(sorted(kept, key=lambda package: package.name))
