"""Weights fetched before their stage: by the node that does, and by the head that waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.deploy import ahead
from agent.deploy.ahead import Ahead, SoFar, Weights, fetch_all
from agent.deploy.messages import CutFile, FetchAhead, StageState
from agent.errors import EngineError, PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.ownership.lease import Token

ONE, OTHER = (NodeKey(bytes([number]) * 32).id for number in (1, 2))
FILE = CutFile("00" * 32, 10, "http://[fd00::1]:1")
TOKEN = Token(1, bytes(32))


async def test_it_says_how_far_it_is() -> None:
    step = asyncio.Event()

    async def fetch(_: Weights, so_far: SoFar) -> Path:
        so_far(4, 10)
        await step.wait()
        return Path("x")

    made = Ahead(FILE, fetch)
    await asyncio.sleep(0)
    assert (made.state.phase, made.state.done, made.state.total) == ("fetching", 4, 10)
    step.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert (made.state.phase, made.state.done) == ("ready", 10)
    await made.stop()


async def test_what_fails_says_why_and_what_is_not_wanted_ends() -> None:
    async def fails(_: Weights, so_far: SoFar) -> Path:
        raise PeerError("the disk is full", hint="Make room.")

    made = Ahead(FILE, fails)
    await asyncio.sleep(0)
    assert made.broken
    assert (made.state.message, made.state.hint) == ("the disk is full", "Make room.")
    ended = []

    async def never(_: Weights, so_far: SoFar) -> Path:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)
        return Path("x")

    other = Ahead(FILE, never)
    await asyncio.sleep(0)
    await other.stop()
    assert ended == [1]


class FakeMesh:
    """Each node answers by its script."""

    def __init__(self, **scripts: list[Any]) -> None:
        self.scripts = {ONE: scripts["one"], OTHER: scripts.get("other", [])}

    async def ask(self, node: NodeId, request: FetchAhead, timeout_s: float) -> Any:
        assert (request.ring, request.token, request.weights) == ("r", TOKEN, FILE)
        script = self.scripts[node]
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, Exception):
            raise answer
        return StageState(**answer)


async def fetched(
    mesh: FakeMesh, within_s: float = 5.0, nodes: tuple[NodeId, ...] = (ONE,)
) -> None:
    await fetch_all(mesh, "r", lambda: TOKEN, dict.fromkeys(nodes, FILE), within_s)  # type: ignore[arg-type] # as far as it is used


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_POLL_S", 0.001)


async def test_all_are_waited_for() -> None:
    going, done = {"phase": "fetching"}, {"phase": "ready"}
    mesh = FakeMesh(one=[going, going, done], other=[going, done])
    await fetched(mesh, nodes=(ONE, OTHER))
    assert mesh.scripts == {ONE: [done], OTHER: [done]}
    await fetch_all(mesh, "r", lambda: TOKEN, {}, 5.0)  # type: ignore[arg-type]


async def test_one_that_cannot_ends_it_with_its_reason() -> None:
    slow = [{"phase": "fetching"}]
    with pytest.raises(EngineError, match="the disk is full"):
        await fetched(
            FakeMesh(one=[{"phase": "broken", "message": "the disk is full"}], other=slow),
            nodes=(ONE, OTHER),
        )
    with pytest.raises(PeerError, match="away"):
        await fetched(FakeMesh(one=[PeerError("away")]))
    with pytest.raises(PeerError, match="fetches nothing ahead"):
        await fetched(FakeMesh(one=[{"phase": "unknown"}]))
    with pytest.raises(PeerError, match="did not come within"):
        await fetched(FakeMesh(one=slow), 0.02)
