"""The command line says what does not fit together, before anything is fetched."""

from __future__ import annotations

import sys

import pytest

from image.make import __main__ as command
from image.make import grub, programs


@pytest.fixture(autouse=True)
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever building takes is there."""
    monkeypatch.setattr(programs, "missing", lambda arch="": [])
    monkeypatch.setattr(grub, "missing", lambda arch: [])
    monkeypatch.setattr(programs, "require_machine", lambda arch: None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--source alpine", "--source alpine takes a --mirror. Name a URL or a folder."),
        ("--flavour raspberrypi", "a Raspberry Pi is no x86_64. Add --arch aarch64."),
        ("--keys /etc", "--keys is for --source alpine."),
        ("--source alpine --mirror /nowhere --keys /nowhere", "no public key is in /nowhere."),
        ("--source alpine --mirror /nowhere", "the mirror /nowhere has no main for x86_64."),
    ],
)
def test_what_does_not_fit_together(
    arguments: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["image/build", *arguments.split()])
    assert command.main() in (2, 5)
    assert words in capsys.readouterr().err


def test_for_another_cpu_compilers_are_asked_for_and_this_machines_grub_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(programs.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(programs, "missing", lambda arch="": [f"what compiles for {arch}"])
    monkeypatch.setattr(grub, "missing", lambda arch: [f"GRUB for {arch}"])
    monkeypatch.setattr(sys, "argv", ["image/build", "--arch", "aarch64"])
    assert command.main() == 5
    assert "this machine: what compiles for aarch64. Install" in capsys.readouterr().err
    # Alpine's packages are built among themselves, so that takes such a machine.
    monkeypatch.setattr(sys, "argv", ["image/build", "--arch", "aarch64", "--source", "alpine"])
    assert command.main() == 5
    assert "this machine: what compiles for  GRUB for aarch64. Inst" in capsys.readouterr().err
