"""Key files: made once, private, whole, and never written over."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest

from agent.errors import StateError
from agent.identity import keyfile, privatefile

SEED = bytes(range(32))
LINE = base64.b64encode(SEED) + b"\n"


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_new_key_is_private_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "state" / "node.key"
    key = keyfile.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert base64.b64decode(path.read_bytes()) == key.seed
    assert path.read_bytes().endswith(b"=\n")
    assert keyfile.load_or_create(path) == key
    assert keyfile.load(path) == key
    assert [entry.name for entry in path.parent.iterdir()] == ["node.key"]


def test_a_private_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keyfile.load_or_create(tmp_path / "a" / "node.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "node.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602])
def test_a_key_file_with_open_permissions_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "node.key", LINE, mode)
    with pytest.raises(StateError) as caught:
        keyfile.load_or_create(path)
    assert caught.value.message == f"key file {path} can be read by others (mode {mode:04o})"
    assert f"chmod 600 {path}" in caught.value.hint
    assert path.read_bytes() == LINE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        LINE[:-5],
        LINE * 2,
        b" " + LINE,
        LINE[:5] + b"!" + LINE[6:],
        base64.b64encode(SEED[:31]) + b"\n",
        base64.b64encode(SEED + b"x") + b"\n",
        SEED,
        b"\xff\xfe" * 20,
    ],
)
def test_a_damaged_key_file_is_refused_and_left_alone(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "node.key", data)
    with pytest.raises(StateError, match="is damaged") as caught:
        keyfile.load_or_create(path)
    assert str(path) in caught.value.message
    assert path.read_bytes() == data


def test_a_line_without_its_end_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "node.key", LINE.rstrip())
    assert keyfile.load(path).seed == SEED


def test_a_missing_key_file(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is no key file"):
        keyfile.load(tmp_path / "node.key")
    assert keyfile.load_if_there(tmp_path / "node.key") is None


def test_a_key_made_by_another_at_the_same_moment_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.key"
    create = privatefile.create

    def someone_was_faster(where: Path, data: bytes) -> bool:
        write(path, LINE)
        return create(where, data)

    monkeypatch.setattr(privatefile, "create", someone_was_faster)
    assert keyfile.load_or_create(path).seed == SEED
    assert path.read_bytes() == LINE
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.key"]


def test_a_directory_or_pipe_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("directory", "pipe"):
        with pytest.raises(StateError, match="not a regular file"):
            keyfile.load(tmp_path / name)


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(StateError, match=r"can be written by others \(mode 0777\)"):
        keyfile.load_or_create(shared / "node.key")
    assert not any(shared.iterdir())


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(StateError):
        keyfile.load_or_create(tmp_path / "state" / "node.key")


def test_replace_leaves_the_old_file_when_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"cannot write .*No space left on device"):
        privatefile.replace(path, b"new")
    with pytest.raises(StateError, match="No space left"):
        privatefile.create(tmp_path / "other", b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_replace_syncs_the_file_before_the_rename_and_the_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "file", b"old")
    seen: list[tuple[str, bytes]] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        seen.append((kind, path.read_bytes()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    privatefile.replace(path, b"new")
    assert seen == [("file", b"old"), ("directory", b"new")]


def test_sweep_removes_only_what_a_crash_left(tmp_path: Path) -> None:
    write(tmp_path / "node.key", LINE)
    write(tmp_path / ".node.key.abc.tmp", b"half")
    assert privatefile.sweep(tmp_path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.key"]
