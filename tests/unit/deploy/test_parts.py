"""The small parts of deployments: announcements, free memory, messages, pictures."""

import os
from pathlib import Path

import msgspec
import pytest

from agent.cli.picture import picture
from agent.deploy import heads, machine, messages
from agent.deploy.heads import Head
from agent.errors import EnvironmentFault, PeerError, UsageError
from agent.ownership.lease import Token


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


def test_free_memory_is_the_kernels_own_figure(tmp_path: Path) -> None:
    assert 0 < machine.free_bytes() < 2**50
    assert 0 < machine.own_bytes(os.getpid()) < 2**50
    assert machine.own_bytes(2**30) == 0, "it has ended"
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("VmRSS: 9 kB\nRssAnon:\t 3 kB\nRssFile: 5 kB\n")
    assert machine.own_bytes(7, tmp_path) == 3 * 1024
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:  3 kB\n")
    assert machine.free_bytes(meminfo) == 3 * 1024
    meminfo.write_text("MemTotal: 9 kB\n")
    with pytest.raises(EnvironmentFault, match="MemAvailable"):
        machine.free_bytes(meminfo)


def test_messages_cross_and_unknown_fields_do_not() -> None:
    request = messages.AskStage(ring="r", epoch=1, index=2)
    assert messages.decode_request(messages.encode(request)) == request
    keep = messages.Keep(b"wish", Token(3, bytes(32)), True)
    assert messages.decode_request(messages.encode(keep)) == keep
    state = messages.StageState(phase="fetching", done=1, total=2)
    head = messages.HeadState(
        "m", "ready", token=Token(3, bytes(32)), stages=(messages.Placed("n", "a", 0, 4),)
    )
    statuses = messages.Statuses((messages.Status("m", "a", "b", 3, head),))
    summary = messages.BookSummary(False, (("m", 1, bytes(32)),))
    for answer in (state, head, statuses, summary):
        assert messages.decode_answer(messages.encode(answer)) == answer
    with pytest.raises(PeerError, match="unknown field `more`"):
        messages.decode_request(msgspec.msgpack.encode({"type": "AskStage", "more": 1}))
    with pytest.raises(PeerError, match="StageState"):
        messages.decode_request(messages.encode(state))


@pytest.mark.parametrize(
    "raw",
    [
        b"\x81\xa4" + b"\x81\x00" * 5000,  # deeper than Python counts
        b"\x81\xa4type\xa1\xff",  # no text
        msgspec.msgpack.encode({"type": "Ask\x1b[2JFacts"}),
    ],
)
def test_a_message_that_cannot_be_read_is_one_line(raw: bytes) -> None:
    for decode in (messages.decode_request, messages.decode_answer):
        with pytest.raises(PeerError, match="cannot be read") as caught:
            decode(raw)
        assert caught.value.line().isprintable()


def test_the_picture_shows_each_stage_where_its_layers_lie() -> None:
    lines = picture([
        {"node": "a", "name": "alpha", "first": 0, "last": 1, "runs_on": "2 CPU threads"},
        {"node": "b", "name": "be", "first": 1, "last": 3, "runs_on": ""},  # still loads
        {"node": "a", "name": "alpha", "first": 3, "last": 4, "runs_on": "2 CPU threads"},
    ])  # fmt: skip
    assert lines == [
        "  ▼ alpha  head   █···  layers 0–0 on 2 CPU threads",
        "  ▼ be     stage  ·██·  layers 1–2",
        "  ● alpha  head   ···█  layers 3–3 on 2 CPU threads",
    ]
    assert picture([]) == []
