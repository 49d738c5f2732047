"""The root key on its way into a safe: copied once, read back, and only then gone from here."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from agent.errors import StateError, UsageError
from agent.identity import keyfile
from agent.identity.keys import NodeKey
from agent.membership import rootkey
from agent.membership.store import Membership, StateDir

NOW = 1_800_000_000.0
KEY, OTHER = NodeKey(b"r" * 32), NodeKey(b"o" * 32)


def test_a_copy_is_private_and_the_same_key(tmp_path: Path) -> None:
    rootkey.copy_out(KEY, tmp_path / "safe")
    assert stat.S_IMODE((tmp_path / "safe").stat().st_mode) == 0o600
    assert rootkey.load(tmp_path / "safe", KEY.id) == KEY
    with pytest.raises(UsageError, match="does not hold this mesh's root key"):
        rootkey.load(tmp_path / "safe", OTHER.id)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    rootkey.copy_out(OTHER, tmp_path / "other")
    for name in ("notes", "folder", "dangling", "other"):
        with pytest.raises(StateError, match="is there already, and is not this root key"):
            rootkey.copy_out(KEY, tmp_path / name)
    assert (tmp_path / "notes").read_text() == "mine"
    assert keyfile.load(tmp_path / "other") == OTHER
    assert not (tmp_path / "nowhere").exists()


def test_a_move_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    rootkey.copy_out(KEY, tmp_path / "safe")
    rootkey.copy_out(KEY, tmp_path / "safe")
    assert keyfile.load(tmp_path / "safe") == KEY


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot write .*gone/safe"):
        rootkey.copy_out(KEY, tmp_path / "gone" / "safe")


def test_a_disk_without_permissions_keeps_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fchmod", lambda fd, mode: os.chmod(tmp_path / "safe", 0o755))
    with pytest.raises(StateError, match=r"copy of the root key cannot be kept: .*read by others"):
        rootkey.copy_out(KEY, tmp_path / "safe")
    assert not (tmp_path / "safe").exists()


def test_a_full_disk_keeps_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left on device"):
        rootkey.copy_out(KEY, tmp_path / "safe")
    assert not (tmp_path / "safe").exists()


def test_what_reads_back_wrong_keeps_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyfile, "load", lambda path: OTHER)
    with pytest.raises(StateError, match="reads back as another key"):
        rootkey.copy_out(KEY, tmp_path / "safe")
    assert not (tmp_path / "safe").exists()


def founded(tmp_path: Path) -> tuple[StateDir, Membership]:
    state = StateDir(tmp_path / "state").lock()
    return state, state.create_mesh("home", "box", NOW)


def test_a_failed_move_leaves_the_key_where_it_is(tmp_path: Path) -> None:
    state, membership = founded(tmp_path)
    (tmp_path / "notes").write_text("mine")
    for to in (tmp_path / "notes", tmp_path / "gone" / "safe", state.path / "root.key"):
        with pytest.raises((StateError, UsageError)):
            membership.move_root_key(to, NOW)
        assert membership.root_key is not None
        assert (state.path / "root.key").exists()
    state.unlock()


def test_the_mesh_goes_on_without_it_and_with_it_from_its_file(tmp_path: Path) -> None:
    state, membership = founded(tmp_path)
    safe = tmp_path / "safe"
    assert membership.move_root_key(safe, NOW) is None  # its grant is of today
    assert membership.root_key is None and membership.can_issue(NOW)
    again = state.membership()
    assert again is not None and again.root_key is None
    ticket = again.invite(NOW, addresses=(), ttl_s=60)
    assert ticket.issuer_id == again.key.id
    made = again.reissue(again.key.id, NOW + 86400, root_key=rootkey.load(safe, again.mesh.root))
    assert made.own_grant is not None
    assert made.own_grant.not_after == int(NOW) + 366 * 86400
    state.unlock()
