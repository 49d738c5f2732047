"""Which loader each architecture has, and what is missing for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import EnvironmentFault
from image.make import grub


def test_what_is_missing_is_named_by_its_package(tmp_path: Path) -> None:
    assert grub.missing("x86_64", tmp_path) == ["grub-pc-bin", "grub-efi-amd64-bin"]
    assert grub.missing("aarch64", tmp_path) == ["grub-efi-arm64-bin"]
    with pytest.raises(EnvironmentFault) as caught:
        grub.make(tmp_path, "aarch64", tmp_path)
    assert caught.value.hint == "Install the package grub-efi-arm64-bin."


def test_aarch64_has_no_bios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arm64-efi").mkdir()
    asked = []
    monkeypatch.setattr(grub, "run", asked.append)
    loader = grub.make(tmp_path, "aarch64", tmp_path)
    assert loader == grub.Loader(b"", b"", tmp_path / "BOOTAA64.EFI")
    assert [command[:5] for command in asked] == [
        ["grub-mkimage", "-O", "arm64-efi", "-d", tmp_path / "arm64-efi"]
    ]
    # Modules that only GRUB for a PC has would end it.
    assert "biosdisk" not in asked[0]
