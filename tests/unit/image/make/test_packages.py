"""What apt would install becomes the packages to unpack."""

from __future__ import annotations

import pytest

from agent.errors import EnvironmentFault
from image.make.packages import COMPONENTS, WANTED, Package, chosen, wanted

SIMULATED = """\
NOTE: This is only a simulation!
Inst gcc-12-base (12.2.0-14+deb12u1 Debian:12.15/oldstable [amd64])
Conf gcc-12-base (12.2.0-14+deb12u1 Debian:12.15/oldstable [amd64])
Inst zlib1g (1:1.2.13.dfsg-1 Debian:12.15/oldstable [amd64]) []
Inst libc6 [2.36-9] (2.36-9+deb12u14 Debian:12.15/oldstable, Debian-Security:12 [amd64]) []
Inst initramfs-tools (0.142+deb12u3 Debian:12.15/oldstable [all])
Inst linux-image-amd64 (6.1.192-3 Debian:12.15/oldstable [amd64])
Inst netbase (6.4 Debian:12.15/oldstable [all])
"""


def test_by_name_and_without_what_only_scripts_need() -> None:
    assert chosen(SIMULATED) == (
        Package("gcc-12-base", "12.2.0-14+deb12u1", "amd64"),
        Package("libc6", "2.36-9+deb12u14", "amd64"),
        Package("netbase", "6.4", "all"),
        Package("zlib1g", "1:1.2.13.dfsg-1", "amd64"),
    )


def test_a_file_is_named_as_apt_names_it() -> None:
    zlib = Package("zlib1g", "1:1.2.13.dfsg-1", "amd64")
    assert zlib.file == "zlib1g_1%3a1.2.13.dfsg-1_amd64.deb"
    assert zlib.request == "zlib1g:amd64=1:1.2.13.dfsg-1"
    assert Package("netbase", "6.4", "all").request == "netbase=6.4"


def test_nothing_to_install_is_no_answer() -> None:
    with pytest.raises(EnvironmentFault, match="does not say"):
        chosen("Reading package lists...\n")


def test_what_is_not_free_is_in_images_for_a_raspberry_pi_alone() -> None:
    assert wanted("virt", "amd64") == ("linux-image-cloud-amd64", *WANTED)
    assert wanted("metal", "arm64") == ("linux-image-arm64", *WANTED)
    more = ("raspi-firmware", "u-boot-rpi", "firmware-brcm80211")
    assert wanted("raspberrypi", "arm64") == ("linux-image-arm64", *more, *WANTED)
    assert COMPONENTS.keys() == {"raspberrypi"}


def test_no_compiler_no_shell_for_strangers() -> None:
    assert not {"gcc", "g++", "make", "openssh-server", "telnetd"}.intersection(WANTED)
