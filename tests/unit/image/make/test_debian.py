"""A mirror that does not answer, or has nothing, is told by its name; no network is needed."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from agent.errors import EnvironmentFault
from image.make import programs
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


def test_an_image_is_built_on_a_machine_of_its_architecture() -> None:
    programs.require_machine(platform.machine())
    with pytest.raises(EnvironmentFault) as caught:
        programs.require_machine("s390x")
    assert caught.value.hint == "Build it on a machine with s390x."
