"""What the agent's answer becomes, through its real client over a unix socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.agent_source import AgentSource
from gateway.errors import NotRunning
from gateway.routing import Replica

ENTRY = {
    "model": "covey-mini", "url": "http://[fd00::1]:7101", "node": "12D3K", "name": "box",
    "context": 1024, "ring": "r1",
}  # fmt: skip


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[AgentSource]:
    made = AgentSource(tmp_path / "agent.sock")
    yield made
    await made.aclose()


async def answering(tmp_path: Path, answer: Any, status: int = 200) -> web.AppRunner:
    async def replicas(_: web.Request) -> web.Response:
        return web.json_response(answer, status=status)

    app = web.Application()
    app.router.add_get("/v1/replicas", replicas)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "agent.sock")).start()
    return runner


async def test_heads_become_replicas(source: AgentSource, tmp_path: Path) -> None:
    odd = {"model": "m", "url": "http://h/", "name": "a\r\nb"}
    runner = await answering(tmp_path, {"replicas": [ENTRY, odd], "later": True,
                                          "deployed": ["m", "x"]})  # fmt: skip
    assert source.deployed() == frozenset()
    assert await source.replicas() == [
        Replica("box", "http://[fd00::1]:7101", "mesh", ("covey-mini",), 1024),
        Replica("a--b", "http://h", "mesh", ("m",), None),
    ]
    assert source.deployed() == {"m", "x"}
    await runner.cleanup()


async def test_no_agent(source: AgentSource) -> None:
    with pytest.raises(NotRunning, match="no agent is running on"):
        await source.replicas()


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        ({"replicas": [{"model": 5}]}, 200, "not understood"),
        ([], 200, "not understood"),
        (
            {"error": {"kind": "StateError", "message": "no mesh yet", "hint": ""}},
            500,
            "no mesh yet",
        ),
    ],
)
async def test_an_agent_that_cannot_say(
    source: AgentSource, tmp_path: Path, answer: Any, status: int, reason: str
) -> None:
    runner = await answering(tmp_path, answer, status)
    with pytest.raises(NotRunning, match=reason):
        await source.replicas()
    await runner.cleanup()
