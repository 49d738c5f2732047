"""An archive that cpio and the kernel read; the same files give the same bytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from image.make.cpio import archive

FILES = {"init": b"#!/bin/sh\n", "bin/busybox": b"\x7fELF" * 999, "modules/00-a.ko": b"odd"}


def entries(raw: bytes) -> list[tuple[str, int, bytes]]:
    """Return name, mode and contents, as the kernel's description of the format says."""
    found = []
    at = 0
    while True:
        assert raw[at : at + 6] == b"070701"
        fields = [int(raw[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        assert fields[2] == fields[3] == fields[5] == 0  # root's, and not dated
        name = raw[at + 110 : at + 110 + length - 1].decode()
        at += -(-(110 + length) // 4) * 4
        data = raw[at : at + size]
        at += -(-size // 4) * 4
        if name == "TRAILER!!!":
            assert at == len(raw)
            return found
        found.append((name, mode, data))


def test_what_is_in_it() -> None:
    found = entries(archive(FILES, ("proc", "a/b")))
    assert {name: data for name, mode, data in found if mode == 0o100755} == FILES
    folders = [name for name, mode, _ in found if mode == 0o40755]
    assert folders == ["a", "a/b", "bin", "modules", "proc"]


def test_a_folder_comes_before_what_lies_in_it() -> None:
    names = [name for name, _, _ in entries(archive(FILES))]
    assert names.index("bin") < names.index("bin/busybox")
    assert names == sorted(names)


def test_the_order_in_which_they_are_named_changes_nothing() -> None:
    turned = dict(reversed(FILES.items()))
    assert archive(turned, ("sys", "dev")) == archive(FILES, ("dev", "sys"))


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_reads_it(tmp_path: Path) -> None:
    done = subprocess.run(
        ["cpio", "-idm", "--quiet"], input=archive(FILES), cwd=tmp_path, check=True
    )  # fmt: skip
    assert done.returncode == 0
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES
