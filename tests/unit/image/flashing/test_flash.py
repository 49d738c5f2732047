"""`image/flash` into a file: what it holds then, and what stops it with one line."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from covey_toml import SSH_KEY, TICKET
from gpt_tables import PATH

from image.disk import bootfiles
from image.disk.gpt import Table
from image.disk.layout import MIB, Sizes
from image.disk.write import write
from image.flashing import __main__ as flashing
from image.flashing import source, writing
from image.make.signing import note_hash

SIZES = Sizes(33 * MIB, MIB, MIB)
# Fast ones.
PACKERS = (bytes, partial(gzip.compress, compresslevel=1), partial(lzma.compress, preset=0))
pytestmark = pytest.mark.skipif(not bootfiles.available(), reason="no dosfstools or mtools")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    (folder / "slot").write_bytes(os.urandom(MIB))
    (folder / "toml").write_text("# nothing is set\n")
    boot = folder / "boot"
    bootfiles.make(boot, SIZES.boot, {"covey.toml": folder / "toml"}, 1_700_000_000)
    out = folder / "covey.img"
    write(out, "x86_64", SIZES, {"boot": boot, "slot-a": folder / "slot"}, b"\xeb\x63")
    note_hash(out)
    return out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def flash(monkeypatch: pytest.MonkeyPatch, *words: object, given: io.StringIO | None = None) -> int:
    monkeypatch.setattr(sys, "argv", ["image/flash", *map(str, words)])
    monkeypatch.setattr(sys, "stdin", given or io.StringIO())
    return flashing.main()


def covey_toml(disk: Path) -> str:
    at = 2 * MIB
    environment = {"PATH": PATH, "MTOOLS_SKIP_CHECK": "1"}
    command = ["mtype", "-i", f"{disk}@@{at}", "::covey.toml"]
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE
    ).stdout.decode()


def test_without_settings_it_is_a_copy(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk.img"
    assert flash(monkeypatch, "--image", image, "--device", disk) == 0
    assert disk.read_bytes() == image.read_bytes()
    said = capsys.readouterr()
    assert f"{disk} holds the image, and was read back" in said.out
    assert "Writing: 39 of 39 MiB" in said.err and "Reading back: 39 of 39 MiB" in said.err
    # As sparse as it was.
    assert disk.stat().st_blocks * 512 < 8 * MIB
    assert list(tmp_path.iterdir()) == [disk]


@pytest.mark.parametrize("packer", PACKERS[1:], ids=["gzip", "xz"])
def test_settings_are_in_it_and_all_else_is_as_it_was(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packer: object
) -> None:
    assert callable(packer)
    packed = tmp_path / "covey.img.packed"
    packed.write_bytes(packer(image.read_bytes()))
    note_hash(packed)
    disk = tmp_path / "disk.img"
    key = tmp_path / "id.pub"
    key.write_text(f"# mine\n{SSH_KEY}\n")
    words = ["--image", packed, "--device", disk, "--name", "shed-1", "--ssh-key", key]
    assert flash(monkeypatch, *words, "--role", "worker", "--role", "relay") == 0
    text = covey_toml(disk)
    assert 'name = "shed-1"\r\n' in text and 'role = ["worker", "relay"]\r\n' in text
    assert f'ssh_key = "{SSH_KEY}"\r\n' in text
    raw, old = disk.read_bytes(), image.read_bytes()
    ends = 2 * MIB + SIZES.boot
    assert (raw[: 2 * MIB], raw[ends:]) == (old[: 2 * MIB], old[ends:])


def test_secrets_come_by_the_standard_input_and_from_files(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, password = tmp_path / "disk.img", tmp_path / "password"
    password.write_text("long secret\n")
    monkeypatch.setattr(flashing.time, "time", lambda: 1_000_000.0)
    words = ["--image", image, "--device", disk, "--ticket", "-", "--wifi", "Ours"]
    given = io.StringIO(f"{TICKET}\n")
    assert flash(monkeypatch, *words, "--wifi-password-file", password, given=given) == 0
    text = covey_toml(disk)
    assert f'ticket = "{TICKET}"\r\n' in text and 'wifi_password = "long secret"\r\n' in text
    assert disk.stat().st_mode & 0o077 == 0


def fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> str:
    """Run it, and return the one line that it ends with."""
    try:
        status = flash(monkeypatch, *words)
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status not in (0, 1)
    lines = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("Reading")
    ]
    assert len(lines) == 1, lines
    return lines[0]


def test_what_makes_no_sense_is_one_line_and_nothing_is_written(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, alone = tmp_path / "disk.img", tmp_path / "alone"
    alone.touch()
    plain = ("--image", image, "--device", disk)
    for words, line in (
        ((), "the following arguments are required: --device. "),
        ((*plain, "--nmae", "x"), "unrecognized arguments: --nmae x"),
        ((*plain, "--name", "Shed 1"), "--name: “Shed 1” cannot be a name. "),
        ((*plain, "--ticket", "covey1no"), "--ticket-file: "),
        ((*plain, "--ticket", TICKET), "this ticket expired "),
        ((*plain, "--ssh-key", tmp_path / "none"), f"{tmp_path / 'none'} cannot be read: "),
        ((*plain, "--sha256", "5"), "--sha256 is no SHA-256. "),
        ((*plain, "--sha256", "0" * 64), f"{image} is damaged: its SHA-256 is "),
        (("--image", tmp_path / "none", "--device", disk, "--unchecked"), "there is no image "),
        (("--image", tmp_path / "none", "--device", disk), f"there is no image {tmp_path}/none. "),
        (("--image", alone, "--device", disk), "there is no alone.sha256 beside "),
        (("--image", image, "--device", image), f"{image} is the image itself. "),
        (("--image", image, "--device", tmp_path), f"{tmp_path} is no disk and no file. "),
        (("--image", image, "--device", "/dev/nosuchdisk"), "there is no /dev/nosuchdisk. Disks "),
        (("--image", image, "--device", "/nowhere/disk"), "there is no folder /nowhere."),
    ):
        assert fails(monkeypatch, capsys, *words).startswith(line)
        assert not disk.exists()


@pytest.mark.parametrize("packer", PACKERS, ids=["plain", "gzip", "xz"])
def test_an_image_that_is_cut_short_or_none(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], packer: object,
) -> None:  # fmt: skip
    assert callable(packer)
    file, disk = tmp_path / "covey.img", tmp_path / "disk.img"
    words = ("--unchecked", "--image", file, "--device", disk)
    file.write_bytes(packer(image.read_bytes())[:-5])
    assert fails(monkeypatch, capsys, *words).startswith(f"{file} is cut short")
    file.write_bytes(packer(os.urandom(MIB)))
    assert fails(monkeypatch, capsys, *words).startswith(f"{file} is no image of Covey's appliance")
    file.write_bytes(b"")
    assert fails(monkeypatch, capsys, *words).startswith(f"{file} is empty")
    file.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(99))
    assert "zstd -d" in fails(monkeypatch, capsys, *words)
    assert not disk.exists()


def test_what_is_there_is_kept_unless_somebody_says_yes(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"precious")
    words = ("--image", image, "--device", disk)
    assert flash(monkeypatch, *words) == 2
    assert f"{disk}: a file of 8 bytes\nnobody is there" in capsys.readouterr().err
    for answer, status in (("y\n", 2), ("", 2), ("yes\n", 0)):
        assert disk.read_bytes() == b"precious"
        assert flash(monkeypatch, *words, given=Terminal(answer)) == status
    assert disk.stat().st_size == image.stat().st_size
    assert flash(monkeypatch, *words, "--yes") == 0


def test_a_disk_that_does_not_keep_what_it_is_given(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writing, "_forget", lambda target: os.pwrite(target, b"x", MIB))
    disk = tmp_path / "disk.img"
    assert flash(monkeypatch, "--image", image, "--device", disk) == 5
    assert "disk.img does not hold what was written to it" in capsys.readouterr().err
    assert not disk.exists()


def test_the_image_changes_while_it_is_written(image: Path, tmp_path: Path) -> None:
    copy = tmp_path / "covey.img"
    copy.write_bytes(image.read_bytes())
    found = source.inspect(copy, hashlib.sha256(copy.read_bytes()).hexdigest())
    with copy.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(source.EnvironmentFault, match="changed while it was written"):
        list(found.chunks())


def test_the_first_bytes_are_written_last(image: Path, tmp_path: Path) -> None:
    """A disk that lost its power has no table, or all of it."""
    found = source.inspect(image, "")
    disk = tmp_path / "disk"
    disk.write_bytes(b"\xff" * (found.size + 3 * MIB))

    class Unplugged(Exception):
        pass

    def say(what: str, done: int) -> None:
        if done > 36 * MIB:
            raise Unplugged

    with disk.open("r+b") as file, pytest.raises(Unplugged):
        writing.write(file.fileno(), "disk", found.size, found.chunks(), say)
    raw = disk.read_bytes()
    assert raw[:MIB] == bytes(MIB) and raw[-MIB:] == bytes(MIB)
    assert raw[MIB : 36 * MIB] == image.read_bytes()[MIB : 36 * MIB]
    with disk.open("r+b") as file:
        writing.write(file.fileno(), "disk", found.size, found.chunks(), lambda *_: None)
    raw = disk.read_bytes()
    assert raw[: found.size] == image.read_bytes()
    assert Table.read(raw) == found.table
