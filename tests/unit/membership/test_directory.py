"""The state directory's lock, and files that are damaged, open, or from another time."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.errors import StateError
from agent.identity.keys import NodeKey
from agent.membership.join import JoinRequest
from agent.membership.store import Membership, StateDir

NOW = 1_800_000_000.0
ROOT = Path(__file__).parents[3]
JSON_FILES = (
    "mesh.json",
    "members.json",
    "invites.json",
    "networkkeys.json",
    "revocations.json",
)
HOLDER = """
import pathlib, sys
from agent.membership.directory import Directory
with Directory(pathlib.Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    with StateDir(tmp_path / "state").lock() as made:
        membership = made.create_mesh("home", "box", NOW)
        membership.invite(NOW, addresses=["192.0.2.1:4001"], ttl_s=60)
        membership.revoke(NodeKey(b"x" * 32).id, "stolen", NOW)
        membership.rotate(NOW, 3600)
        yield made


def snapshot(state: StateDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in state.path.iterdir()}


def use(state: StateDir) -> Membership | None:
    """Everything an agent does with the directory, as far as it gets."""
    membership = state.membership()
    if membership is None:
        return state.create_mesh("home", "box", NOW)
    membership.add_member(membership.certificate, NOW, control_addresses=["192.0.2.2:4001"])
    ticket = membership.invite(NOW, addresses=["192.0.2.1:4001"], ttl_s=60)
    membership.admit(JoinRequest.to(ticket, "box", NodeKey(b"n" * 32)), NOW)
    return membership


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"\x00" * len(raw),
        lambda raw: b"\xff\xfe" + raw,
        lambda raw: b"[" * 100_000,
        lambda raw: b'{"version": 1}',
        lambda raw: raw.replace(b'"version": 1', b'"version": "1"'),
        lambda raw: raw.replace(b'"version": 1', b'"version": 0'),
        lambda raw: raw.replace(b'"version": 1', b'"version": 1, "surprise": 2'),
    ],
)
def test_a_damaged_file_is_named_and_never_overwritten(
    state: StateDir, name: str, damage: object
) -> None:
    assert callable(damage)
    path = state.path / name
    path.write_bytes(damage(path.read_bytes()))
    before = snapshot(state)
    with pytest.raises(StateError) as caught:
        use(state)
    assert caught.value.message.startswith(f"{path} is damaged: ")
    assert "\n" not in caught.value.line()
    assert "backup" in caught.value.hint
    assert snapshot(state) == before


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_file_of_a_newer_version_is_refused_and_left_alone(state: StateDir, name: str) -> None:
    path = state.path / name
    path.write_bytes(b'{"version": 2, "something": ["new"]}')
    before = snapshot(state)
    with pytest.raises(StateError) as caught:
        use(state)
    assert caught.value.message == f"{path} was written by a newer Covey (format 2, ours is 1)"
    assert "Update" in caught.value.hint
    assert snapshot(state) == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: raw[:-1], "is damaged"),
        (lambda raw: b"", "is damaged"),
        (lambda raw: raw.replace(b"box", b"bo\xff"), "is damaged"),
        (lambda raw: raw[:1] + b"\x02" + raw[2:], "newer version of Covey"),
    ],
)
def test_a_damaged_certificate(state: StateDir, damage: object, words: str) -> None:
    assert callable(damage)
    path = state.path / "certificate"
    path.write_bytes(damage(path.read_bytes()))
    before = snapshot(state)
    with pytest.raises(StateError, match=words) as caught:
        use(state)
    assert str(path) in caught.value.message
    (state.path / "mesh.json").unlink()
    del before["mesh.json"]
    with pytest.raises(StateError, match=words):
        use(state)  # not even by making a mesh anew
    assert snapshot(state) == before


def test_a_missing_certificate(state: StateDir) -> None:
    (state.path / "certificate").unlink()
    with pytest.raises(StateError, match="certificate is missing"):
        use(state)


@pytest.mark.parametrize("name", ["node.key", "root.key"])
def test_damaged_keys(state: StateDir, name: str) -> None:
    (state.path / name).write_bytes(b"damaged\n")
    before = snapshot(state)
    with pytest.raises(StateError, match=f"key file .*{name} is damaged"):
        use(state)
    assert snapshot(state) == before


def test_a_lost_node_key_is_not_replaced_in_silence(state: StateDir) -> None:
    (state.path / "node.key").unlink()
    with pytest.raises(StateError, match="does not belong to this node's key"):
        use(state)


def test_a_network_that_cannot_be_is_damage(state: StateDir) -> None:
    path = state.path / "mesh.json"
    path.write_bytes(path.read_bytes().replace(b"10.77.0.0/16", b"8.8.8.0/24"))
    with pytest.raises(StateError, match=r"mesh.json is damaged: 8.8.8.0/24 is not a private"):
        use(state)


def test_a_damaged_certificate_among_the_members(state: StateDir) -> None:
    path = state.path / "members.json"
    path.write_bytes(path.read_bytes().replace(b'"certificate": "n', b'"certificate": "m'))
    with pytest.raises(StateError, match=r"members.json is damaged: the certificate is damaged"):
        use(state)


@pytest.mark.parametrize("name", [*JSON_FILES, "certificate", "node.key", "root.key"])
def test_files_open_to_others_are_refused(state: StateDir, name: str) -> None:
    (state.path / name).chmod(0o644)
    with pytest.raises(StateError, match=rf"{name} can be read by others \(mode 0644\)"):
        use(state)


def test_a_directory_open_to_writers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o770)
    with pytest.raises(StateError, match="can be written by others"):
        StateDir(tmp_path / "open").lock()


def test_the_lock_removes_what_a_crash_half_wrote(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "s" / ".members.json.x1.tmp").write_bytes(b"half")
    with StateDir(tmp_path / "s").lock() as state:
        assert [path.name for path in state.path.iterdir()] == ["lock"]


def test_a_second_agent_is_told_the_first_ones_pid(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StateError) as caught:
            StateDir(path).lock()
        assert caught.value.message == f"an agent already runs on {path} (pid {holder.pid})"
        assert "agent down" in caught.value.hint
        holder.kill()
        holder.wait(timeout=10)
    # A killed agent leaves no lock behind.
    with StateDir(path).lock() as state:
        assert (path / "lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(StateError, match=f"pid {os.getpid()}"):
            StateDir(path).lock()
        with pytest.raises(RuntimeError, match="already locked"):
            state.lock()
    state.unlock()
    with StateDir(path).lock():
        pass


def test_a_child_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state").lock()
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            state.unlock()
            with StateDir(tmp_path / "state").lock():
                assert child.poll() is None
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("name", "good", "bad", "words"),
    [
        ("networkkeys.json", b'"change": "', b'"change": "AAAA', "the key change is damaged"),
        ("networkkeys.json", b'"pending": []', b'"pending": ["AAAA"]', "the key change is damaged"),
        ("revocations.json", b'"lists": [\n    "', b'"lists": [\n    "AAAA', "list is damaged"),
    ],
)
def test_damage_inside_signed_things(
    state: StateDir, name: str, good: bytes, bad: bytes, words: str
) -> None:
    path = state.path / name
    raw = path.read_bytes()
    assert good in raw
    path.write_bytes(raw.replace(good, bad))
    with pytest.raises(StateError, match=words) as caught:
        use(state)
    assert caught.value.message.startswith(f"{path} is damaged: ")


def test_a_key_that_is_not_its_changes(state: StateDir) -> None:
    path = state.path / "networkkeys.json"
    file = msgspec.json.decode(path.read_bytes())
    file["keys"][0]["key"] = file["keys"][1]["key"]
    path.write_bytes(msgspec.json.encode(file))
    with pytest.raises(StateError, match="is damaged: the key is not the one that the change"):
        use(state)
    path.write_bytes(msgspec.json.encode(file | {"keys": []}))
    with pytest.raises(StateError, match="is damaged: it holds no key"):
        use(state)


def test_keys_of_another_mesh_are_not_used(state: StateDir) -> None:
    path = state.path / "networkkeys.json"
    file = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(file | {"root": base64.b64encode(b"o" * 32).decode()}))
    with pytest.raises(StateError, match=r"networkkeys.json is missing"):
        use(state)


def test_a_wipe_leaves_no_secret(state: StateDir) -> None:
    (state.path / "covey0.conf").write_bytes(b"PrivateKey = x")
    (state.path / "agent.log").write_bytes(b"up")
    (state.path / ".networkkeys.json.x1.tmp").write_bytes(b"half")
    removed = state.wipe(("*.conf", "discovery"))
    assert removed[0] == "mesh.json"
    assert {"node.key", "root.key", "networkkeys.json", "covey0.conf"} <= set(removed)
    assert sorted(path.name for path in state.path.iterdir()) == ["agent.log", "lock"]
    assert state.membership() is None
    assert state.wipe() == ()
