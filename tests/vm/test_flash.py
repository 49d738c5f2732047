"""`image/flash` onto a real block device: what the kernel says of it counts, and is obeyed.

Needs root and loop devices; where they are not there, as in a container, the cases are skipped. The
same for files is in tests/unit/image/flashing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.disk import bootfiles
from image.disk.gpt import Table
from image.disk.layout import MIB, Sizes
from image.disk.write import write

ROOT = Path(__file__).parents[2]
SIZES = Sizes(33 * MIB, MIB, MIB)
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], env=os.environ | {"PATH": PATH, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def flash(image: Path, device: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "image.flashing", "--image", image, "--device", device]
    return run(*command, "--unchecked", *words)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    (folder / "slot").write_bytes(os.urandom(MIB))
    bootfiles.make(folder / "boot", SIZES.boot, {"slot": folder / "slot"}, 1_700_000_000)
    out = folder / "covey.img"
    write(out, "x86_64", SIZES, {"boot": folder / "boot", "slot-a": folder / "slot"})
    return out


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    backing = tmp_path / "disk"
    with backing.open("wb") as file:
        file.truncate(64 * MIB)
    made = run("losetup", "--find", "--show", backing)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    yield made.stdout.strip()
    run("losetup", "--detach", made.stdout.strip())


def test_a_disk_is_written_and_has_the_table(image: Path, loop: str) -> None:
    done = flash(image, loop, "--yes", "--name", "shed-1")
    assert done.returncode == 0, done.stderr
    assert f"{loop} holds the image, and was read back" in done.stdout
    with Path(loop).open("rb") as disk:
        assert Table.read(disk.read(MIB)) == Table.read(image.read_bytes())


def test_without_a_yes_it_shows_what_is_there(image: Path, loop: str) -> None:
    done = flash(image, loop)
    assert done.returncode == 2
    assert f"{loop}: no model, 64.0 MiB, built in" in done.stderr


def test_a_disk_that_is_in_use_is_refused(image: Path, loop: str, tmp_path: Path) -> None:
    assert run("mkfs.ext4", "-q", loop).returncode == 0
    where = tmp_path / "mounted"
    where.mkdir()
    mounted = run("mount", loop, where)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted: {mounted.stderr.strip()}")
    try:
        done = flash(image, loop, "--yes")
        assert done.returncode == 2
        assert f"{loop} is in use: {loop} is mounted on {where}" in done.stderr
    finally:
        run("umount", where)


def test_a_disk_that_something_holds_open_is_refused(image: Path, loop: str) -> None:
    held = os.open(loop, os.O_RDWR | os.O_EXCL)
    try:
        done = flash(image, loop, "--yes")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f"{loop} is in use. ")
    finally:
        os.close(held)


def test_a_disk_that_is_too_small(image: Path, loop: str, tmp_path: Path) -> None:
    backing = tmp_path / "disk"
    os.truncate(backing, 8 * MIB)
    run("losetup", "--set-capacity", loop)
    done = flash(image, loop, "--yes")
    assert done.returncode == 2
    assert f"{loop} is too small: it has 8.0 MiB, and the image 39.0 MiB" in done.stderr
