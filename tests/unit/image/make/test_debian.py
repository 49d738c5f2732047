"""A mirror that does not answer, or has nothing, is told by its name; no network is needed."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from agent.errors import EnvironmentFault
from image.make import debian, programs
from image.make.debian import Apt

NEEDS_APT = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed")


@NEEDS_APT
def test_a_mirror_that_does_not_answer(tmp_path: Path) -> None:
    # Nobody listens on port 1.
    with pytest.raises(EnvironmentFault) as caught:
        Apt(tmp_path, "http://127.0.0.1:1/debian").plan("virt")
    assert caught.value.hint.startswith("The mirror http://127.0.0.1:1/debian could not be used.")


@NEEDS_APT
def test_a_folder_that_is_no_mirror(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    with pytest.raises(EnvironmentFault) as caught:
        Apt(tmp_path / "cache", str(tmp_path / "mirror")).plan("virt")
    assert "has to answer to apt" in caught.value.hint


def test_a_program_that_is_missing_is_told_with_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs, "PATH", "/nowhere")
    with pytest.raises(EnvironmentFault) as caught:
        programs.run(["mksquashfs", "-version"])
    assert caught.value.line() == "mksquashfs is not installed. Install the package squashfs-tools."
    assert "squashfs-tools" in programs.missing()


def test_a_program_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(EnvironmentFault, match="sh failed: b; c; d"):
        programs.run(["sh", "-c", "printf 'a\nb\nc\nd\n' >&2; exit 3"])


def test_what_compiles_for_another_cpu_is_named_by_its_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs, "PATH", "/nowhere")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert programs.crosses("aarch64") and not programs.crosses("x86_64")
    compilers = {"gcc-aarch64-linux-gnu", "g++-aarch64-linux-gnu"}
    assert compilers < set(programs.missing("aarch64"))
    assert not compilers & set(programs.missing())


def test_packages_of_another_architecture_have_lists_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> str:
        asked.append(command)
        return "Inst libgmp10 (2:6.2.1 Debian:12 [arm64])\n"

    monkeypatch.setattr(debian, "run", run)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    apt = Apt(tmp_path, arch="aarch64")
    assert [package.file for package in apt.resolve(["libgmp10"])] == [
        "libgmp10_2%3a6.2.1_arm64.deb"
    ]
    apt.resolve(["libgmp10"])
    # Once is enough.
    assert [command[-1] for command in asked] == ["update", "libgmp10", "libgmp10"]
    for command in asked:
        assert "APT::Architecture=arm64" in command
        assert f"Dir::State::Lists={tmp_path}/apt-arm64/lists" in command
        # What this machine's apt asks, so with its keys.
        assert not [word for word in command if word.startswith("Dir::Etc")]
    # For this machine's own its lists count as they are.
    Apt(tmp_path, arch="x86_64").resolve(["libgmp10"])
    assert "update" not in asked[-1] and "APT::Architecture=amd64" not in asked[-1]


ASKED = """\
Debian bookworm http://deb.debian.org/debian/
Debian bookworm http://deb.debian.org/debian/
Debian bookworm-security http://deb.debian.org/debian-security/
. nodistro https://deb.example.com/
Debian trixie http://deb.debian.org/debian/
"""


def test_firmware_is_asked_for_where_this_machine_asks_for_debian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"indextargets": ASKED, "update": "", "install": "Inst a (1 Debian:12 [all])\n"}
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> str:
        asked.append([str(word) for word in command])
        return next(said[word] for word in said if word in command)

    monkeypatch.setattr(debian, "run", run)
    Apt(tmp_path, arch="aarch64", components=("non-free-firmware",)).plan("raspberrypi")
    lists = tmp_path / "apt-arm64-non-free-firmware"
    keyring = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert (lists / "sources.list").read_text() == (
        f"deb {keyring} http://deb.debian.org/debian/ bookworm main non-free-firmware\n"
        f"deb {keyring} http://deb.debian.org/debian-security/ bookworm-security "
        "main non-free-firmware\n"
    )
    assert f"Dir::Etc::SourceList={lists}/sources.list" in asked[-1]
    assert {"linux-image-arm64", "raspi-firmware", "u-boot-rpi"} < set(asked[-1])
    # A mirror that is named is asked, and no other.
    Apt(tmp_path, "http://host/debian/", "aarch64", ("non-free-firmware",)).plan("raspberrypi")
    assert (lists / "sources.list").read_text() == (
        f"deb {keyring} http://host/debian bookworm main non-free-firmware\n"
    )


def test_a_machine_whose_apt_asks_for_no_debian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "run", lambda command, **_: "")
    with pytest.raises(EnvironmentFault, match="knows no mirror of Debian 12"):
        Apt(tmp_path, arch="aarch64", components=("non-free-firmware",)).plan("raspberrypi")


def test_an_image_is_built_on_a_machine_of_its_architecture() -> None:
    programs.require_machine(platform.machine())
    with pytest.raises(EnvironmentFault) as caught:
        programs.require_machine("s390x")
    assert caught.value.hint == "Build it on a machine with s390x."
