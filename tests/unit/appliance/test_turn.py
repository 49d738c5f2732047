"""A node asks those that share its rings, over HTTP, before it restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from agent.appliance import door, turn
from agent.errors import NotRunning, PeerError, StateError


class Agent:
    """Answers as an agent whose ring has another node, at a host."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.stages = [{"node": "a"}, {"node": "b"}]
        self.peers = [{"node": "b", "name": "box", "ipv6": host}]

    async def get(self, path: str) -> dict[str, Any]:
        return {
            "/v1/status": {"node": "a"},
            "/v1/deployments": {
                "deployments": [{"name": "duo", "head": "a", "stages": self.stages}]
            },
            "/v1/peers": {"peers": self.peers},
        }[path]


class NoAgent(Agent):
    async def get(self, path: str) -> dict[str, Any]:
        raise NotRunning("no agent is running")


@asynccontextmanager
async def member(status: int, answer: Any) -> AsyncIterator[int]:
    """Serve one member's answer; yield its port."""

    async def handle(_: web.Request) -> web.Response:
        return web.json_response(answer, status=status)

    app = web.Application()
    app.router.add_get("/appliance", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [
        (200, {"standing": "good", "version": "0.1.0"}, ""),
        (404, {}, ""),
        (200, {"standing": "trial"}, "has a version on trial"),
        (200, {"standing": "leaving"}, "is about to restart"),
        (200, {"standing": "written"}, ""),
        (200, {"standing": "unheard of"}, "is away"),
        (200, [], "is away"),
        (500, {}, "is away"),
    ],
)
async def test_what_the_other_node_says(status: int, answer: Any, why: str) -> None:
    async with member(status, answer) as port:
        assert (await turn.look(Agent(), port)).endswith(why)  # type: ignore[arg-type]
        assert bool(await turn.look(Agent(), port)) == bool(why)  # type: ignore[arg-type]


async def test_one_that_does_not_answer_is_away() -> None:
    assert (await turn.look(Agent(), 1)).endswith("box, which has a part of duo too, is away"[3:])  # type: ignore[arg-type]
    lost = Agent()
    lost.peers = []
    assert (await turn.look(lost, 1)).startswith("b, which has a part")  # type: ignore[arg-type]


async def test_alone_or_without_an_agent_it_may_restart() -> None:
    alone = Agent()
    alone.stages = [{"node": "a"}]
    assert await turn.look(alone, 1) == ""  # type: ignore[arg-type]
    assert await turn.look(NoAgent(), 1) == ""  # type: ignore[arg-type]


async def test_waiting_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "_PAUSE_S", 0.0)
    told: list[str] = []
    with pytest.raises(StateError, match="was not restarted: box, which has a part of duo too"):
        await turn.wait(Agent(), 1, told.append, 0.1)  # type: ignore[arg-type]
    assert len(told) == 1


class Updater:
    """The updater of this machine; `said` is what was asked of it, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        monkeypatch.setattr(door, "ask", self.ask)
        monkeypatch.setattr(door, "leaving", self.leaving)
        monkeypatch.setattr(turn, "_PAUSE_S", 0.0)
        monkeypatch.setattr(turn, "_SHORT_PAUSE_S", 0.0)

    async def ask(self, do: str, *, restart: bool) -> dict[str, Any]:
        assert restart
        self.said.append(do)
        return {"slot": "b"}

    @asynccontextmanager
    async def leaving(self) -> AsyncIterator[None]:
        self.said.append("leaves")
        yield
        self.said.append("stays")


async def test_it_says_that_it_is_leaving_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    updater = Updater(monkeypatch)
    told: list[str] = []
    async with member(200, {"standing": "written"}) as port:
        found = await turn.restart(Agent(), port, "back", told.append)  # type: ignore[arg-type]
    assert found == {"slot": "b"} and told == []
    assert updater.said == ["leaves", "back", "stays"]


async def test_it_takes_that_back_for_one_that_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    updater = Updater(monkeypatch)
    told: list[str] = []
    standings = iter(["good", "trial", "good", "leaving", "good"])

    async def asked(*_: object) -> str:
        return next(standings)

    monkeypatch.setattr(turn, "_standing", asked)
    await turn.restart(Agent(), 1, "restart", told.append)  # type: ignore[arg-type]
    assert updater.said == ["leaves", "stays", "leaves", "restart", "stays"]
    assert [why.rpartition(" too, ")[2] for why in told] == [
        "has a version on trial", "is about to restart",
    ]  # fmt: skip


async def test_without_others_it_just_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    updater = Updater(monkeypatch)
    await turn.restart(NoAgent(), 1, "back", print)  # type: ignore[arg-type]
    assert updater.said == ["back"]


async def test_where_a_members_update_is() -> None:
    agent = Agent("fd86::2")
    for name in ("box", "b"):
        found = await turn.address_of(agent, name, 51821)  # type: ignore[arg-type]
        assert found == "http://[fd86::2]:51821/appliance/update"
    with pytest.raises(PeerError, match="no other member is called den"):
        await turn.address_of(agent, "den", 1)  # type: ignore[arg-type]
