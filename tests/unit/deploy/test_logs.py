"""What is kept of engines that ran, and how it is gathered from other nodes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import config
from agent.deploy import messages
from agent.deploy.engines import Engines
from agent.deploy.logs import Logs, gather
from agent.deploy.messages import (
    LOG_LINES,
    TAILS_MAX,
    Answer,
    AskLogs,
    EngineTails,
    Facts,
    LogTail,
    Request,
)
from agent.deploy.ring import ring_id
from agent.engine.spec import EngineSpec
from agent.engine.tail import LINE_CHARACTERS, Tail
from agent.errors import CoveyError, PeerError
from agent.identity.keys import NodeId, NodeKey

OWN, OTHER = (NodeKey(bytes([n]) * 32).id for n in (1, 2))
RING = ring_id(OTHER, "m")


class FakeEngine:
    """An engine that says so many lines, and lives or does not."""

    def __init__(self, number: int, *, name: str = "", ring: str = "", alive: bool = True) -> None:
        self.spec = EngineSpec(
            role="whole" if name else "stage", files=("x",), model_name=name or "model", ring=ring,
            stage=0 if name else 1, stages=2,
        )  # fmt: skip
        self.pid, self.alive = number, alive
        self.state = "runs" if alive else "was stopped"
        self._tail = Tail()
        for line in range(number):
            self._tail.append(f"line {line}")

    @property
    def log_tail(self) -> list[str]:
        return list(self._tail)

    @property
    def log_lines(self) -> int:
        return self._tail.total


def filled(*engines: Any) -> Logs:
    logs = Logs()
    for engine in engines:
        logs.add(engine)
    return logs


def pids(tails: list[LogTail]) -> list[int]:
    return [tail.pid for tail in tails]


def test_each_deployment_has_its_own() -> None:
    logs = filled(FakeEngine(1, name="m"), FakeEngine(2, ring=RING), FakeEngine(3, name="n"))
    assert pids(logs.tails(9)) == [1, 2, 3]
    assert pids(logs.tails(9, "m", {RING})) == [1, 2]
    assert pids(logs.tails(9, "m")) == [1]
    assert logs.tails(9, "none") == []


def test_lines_are_the_last_and_numbered() -> None:
    [tail] = filled(FakeEngine(70, name="m")).tails(3)
    assert (tail.first, tail.lines) == (67, ("line 67", "line 68", "line 69"))
    [tail] = filled(FakeEngine(70, name="m")).tails(LOG_LINES)
    assert (tail.first, len(tail.lines)) == (20, 50)
    assert tail.state == "runs"


def test_the_last_that_ended_are_kept_and_those_that_run() -> None:
    ended = [FakeEngine(n, name="m", alive=False) for n in range(1, 9)]
    running = [FakeEngine(n, name="m") for n in (20, 21)]
    logs = filled(*running, *ended, FakeEngine(30, name="m"))
    assert pids(logs.tails(9)) == [20, 21, 6, 7, 8, 30]
    many = [FakeEngine(n, name=f"m{n}", alive=False) for n in range(100)]
    assert len(filled(*many, FakeEngine(1, name="x")).tails(9)) == 25
    # However much runs, an answer can be encoded and read.
    crowd = filled(*(FakeEngine(n % 60, name=f"m{n}") for n in range(200))).tails(LOG_LINES)
    assert len(crowd) == TAILS_MAX
    answer = EngineTails(tuple(crowd))
    assert messages.decode_answer(messages.encode(answer)) == answer


def test_long_and_unprintable_lines_are_made_fit() -> None:
    tail = Tail()
    tail.append("a\x1b[31mb\x00c" + "x" * 10_000)
    tail.append("  ends  ")
    assert tail.total == 2
    assert tail[0].startswith("a [31mb cx")
    assert len(tail[0]) == LINE_CHARACTERS
    assert tail[1] == "  ends"


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "AskLogs", "lines": 0},
        {"type": "AskLogs", "lines": 51},
        {"type": "AskLogs", "name": "x" * 65},
    ],
)
def test_questions_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PeerError):
        messages.decode_request(msgspec.msgpack.encode(wrong))


async def test_who_does_not_answer_is_named_and_the_others_are_shown() -> None:
    third = NodeKey(bytes([3]) * 32).id
    tails = EngineTails((LogTail("the model", 7, 0, ("hello",), "runs"),))

    async def ask(node: NodeId, request: Request, timeout_s: float) -> Answer:
        assert request == AskLogs("m", 5)
        if node == OTHER:
            raise PeerError("den does not answer", hint="Is it on?")
        return tails if node == OWN else Facts(1, 1)

    names = {OWN: "box", OTHER: "den", third: "attic"}
    found = await gather([OWN, OTHER, third], "m", 5, ask, names.__getitem__)
    assert [(one["name"], one["error"]) for one in found] == [
        ("attic", "it answered Facts."), ("box", ""), ("den", "den does not answer. Is it on?"),
    ]  # fmt: skip
    assert found[1]["tails"] == [
        {"title": "the model", "pid": 7, "first": 0, "lines": ("hello",), "state": "runs"}
    ]


async def test_what_an_engine_said_that_did_not_start_is_kept(tmp_path: Path) -> None:
    settings, _ = config.load(
        Path("/dev/null"), {}, [f"node.state_dir={tmp_path}", "engine.threads=1"]
    )
    engines = Engines(settings, bytes(32), OWN)
    engines.own_address = "::1"
    (tmp_path / "m.gguf").write_bytes(os.urandom(64))
    with pytest.raises(CoveyError) as caught:
        await engines.start_whole(tmp_path / "m.gguf", name="m", context=64)
    [tail] = engines.logs.tails(LOG_LINES, "m")
    assert tail.state == f"ended: {caught.value.message}"
    assert any("m.gguf" in line for line in tail.lines)
