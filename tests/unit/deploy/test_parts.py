"""The small parts of deployments: announcements, stored wishes, free memory, messages, pictures."""

from pathlib import Path

import msgspec
import pytest

from agent.api import DeployRequest
from agent.cli.deployments import picture
from agent.deploy import heads, machine, messages
from agent.deploy.heads import Head
from agent.deploy.wishes import WishList
from agent.errors import EnvironmentFault, PeerError, StateError, UsageError


def test_heads_are_read_as_they_were_written() -> None:
    found = [Head("covey-mini", 7101, 1024, "ab" * 16), Head("llama", 7103, 8192, "cd" * 16)]
    read = heads.decode(heads.encode(found))
    assert [(h.model, h.port, h.context) for h in read] == [
        (h.model, h.port, h.context) for h in found
    ]


def test_more_heads_than_fit_are_refused_with_advice() -> None:
    with pytest.raises(UsageError, match="do not fit") as caught:
        heads.encode([Head("x" * 60, 7101, 1024, "ab" * 16)] * 5)
    assert "--name" in caught.value.hint


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x01", msgspec.msgpack.encode([["x", "y", 1, 2]])])
def test_nonsense_is_the_peers_fault(raw: bytes) -> None:
    with pytest.raises(PeerError, match="cannot be read"):
        heads.decode(raw)


def test_wishes_come_back_and_damage_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "deployments.json"
    wishes = WishList(path)
    assert wishes.read() == ()
    wanted = (DeployRequest(model="covey-mini", name="m", nodes=3, context=64),)
    wishes.write(wanted)
    assert wishes.read() == wanted
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text('{"version": 1, "wishes": [{"mode')
    with pytest.raises(StateError, match=r"deployments\.json is damaged"):
        wishes.read()
    path.write_text('{"version": 2, "wishes": []}')
    with pytest.raises(StateError, match="format 2"):
        wishes.read()
    assert path.read_text() == '{"version": 2, "wishes": []}'


def test_free_memory_is_the_kernels_own_figure(tmp_path: Path) -> None:
    assert 0 < machine.free_bytes() < 2**50
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:  3 kB\n")
    assert machine.free_bytes(meminfo) == 3 * 1024
    meminfo.write_text("MemTotal: 9 kB\n")
    with pytest.raises(EnvironmentFault, match="MemAvailable"):
        machine.free_bytes(meminfo)


def test_messages_cross_and_unknown_fields_do_not() -> None:
    request = messages.AskStage(ring="r", epoch=1, index=2)
    assert messages.decode_request(messages.encode(request)) == request
    state = messages.StageState(phase="fetching", done=1, total=2)
    assert messages.decode_answer(messages.encode(state)) == state
    with pytest.raises(msgspec.ValidationError):
        messages.decode_request(msgspec.msgpack.encode({"type": "AskStage", "more": 1}))
    with pytest.raises(msgspec.ValidationError):
        messages.decode_request(messages.encode(state))


def test_the_picture_shows_each_stage_where_its_layers_lie() -> None:
    lines = picture([
        {"node": "a", "name": "alpha", "first": 0, "last": 1},
        {"node": "b", "name": "be", "first": 1, "last": 3},
        {"node": "a", "name": "alpha", "first": 3, "last": 4},
    ])  # fmt: skip
    assert lines == [
        "  ▼ alpha  head   █···  layers 0–0",
        "  ▼ be     stage  ·██·  layers 1–2",
        "  ● alpha  head   ···█  layers 3–3",
    ]
    assert picture([]) == []
