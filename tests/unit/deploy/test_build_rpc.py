"""A build over llama.cpp's RPC: real engines on this machine for a model that cannot be cut."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from agent import config
from agent.deploy.build import Build
from agent.deploy.engines import Engines
from agent.deploy.messages import Answer, AskFacts, Facts, Request
from agent.deploy.parts import Parts
from agent.deploy.planning import Own
from agent.deploy.stages import StageHost
from agent.deploy.wish import Wish
from agent.engine.supervisor import Engine
from agent.errors import EngineError, UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.ownership.lease import Token
from agent.placement.inputs import Node

# The models of the engine's tests, which pytest's importlib mode does not put on the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

import tiny_mamba

pytestmark = pytest.mark.slow


# Not those of another file, which may run beside this one.
PORTS = "network.engine_ports=7220-7259"
OWN, BETA, GAMMA = (NodeKey(bytes([n]) * 32).id for n in range(3))
NAMES = {BETA: "beta", GAMMA: "gamma"}


class Nearby:
    """A mesh whose other nodes are on this machine too."""

    def __init__(self, hosts: dict[NodeId, StageHost]) -> None:
        self._hosts = hosts

    def live_workers(self, now: float) -> list[Any]:
        return [
            SimpleNamespace(node_id=node, certificate=SimpleNamespace(name=NAMES[node], tags=()))
            for node in self._hosts
        ]

    async def ask(self, node: NodeId, request: Request, timeout_s: float) -> Answer:
        if isinstance(request, AskFacts):
            return Facts(free_bytes=2**30, cores=1)
        return await self._hosts[node].answer(OWN, request)  # type: ignore[arg-type] # of a head


@pytest.fixture
def build(tmp_path: Path, cache: str) -> Callable[..., Any]:
    tiny_mamba.write(tmp_path / "m.gguf")

    @asynccontextmanager
    async def started(**changes: Any) -> AsyncIterator[tuple[Build, dict[NodeId, StageHost]]]:
        settings, _ = config.load(
            Path("/dev/null"), {}, [f"node.state_dir={tmp_path}", "engine.threads=1", PORTS]
        )
        engines = Engines(settings, bytes(32), OWN)
        engines._cache = lambda: cache  # type: ignore[method-assign] # one self-test for all
        engines.own_address = "::1"
        engines.address = lambda node: "::1"  # type: ignore[method-assign] # all are here
        hosts = {node: StageHost(tmp_path / NAMES[node], engines) for node in (BETA, GAMMA)}
        fields = {"name": "m", "model": str(tmp_path / "m.gguf"), "author": bytes(32),
                  "generation": 1, "at": 0}  # fmt: skip
        made = Build(
            Wish(**fields | changes), "ab" * 16, 1, settings=settings, engines=engines,
            own=Own(Node(str(OWN), "alpha", 2**30)), blobs=None,
            parts=Parts(tmp_path / "parts"), mesh=Nearby(hosts),  # type: ignore[arg-type] # see above
            progress=lambda *_: None, token=lambda: Token(1, bytes(32)),
        )  # fmt: skip
        try:
            yield made, hosts
        finally:
            await made.down()
            assert [host.engines() for host in hosts.values()] == [[], []]
            await asyncio.gather(*(host.stop() for host in hosts.values()))

    return started


async def answer(head: Engine) -> str:
    url = f"http://[::1]:{head.http_port}/v1/completions"
    body = {"model": "m", "prompt": "the ring of stages", "max_tokens": 12, "temperature": 0}
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as reply:
        assert reply.status == 200, await reply.text()
        text: str = (await reply.json())["choices"][0]["text"]
        return text


async def test_what_cannot_be_cut_is_spread_and_answers_as_on_one_node(build: Any) -> None:
    async with build() as (alone, _):
        expected = await answer(await alone.up())
        assert "it runs on one node, since m.gguf cannot be cut" in alone.reasons[0]
    async with build(nodes=3) as (made, _):
        with pytest.raises(UsageError, match="not on 3") as caught:
            await made.up()
        assert "`--engine rpc` may spread it" in caught.value.hint
    async with build(nodes=3, engine="rpc") as (made, hosts):
        head = await made.up()
        assert [stage.name for stage in made.plan.stages] == ["alpha", "beta", "gamma"]
        assert made.reasons[-1] == "llama.cpp's RPC asks beta, gamma in turn for each batch"
        assert await answer(head) == expected
        phases = {host.engines()[0]["phase"] for host in hosts.values()}
        assert phases <= {"listening", "ready"}


async def test_one_node_that_fits_needs_no_rpc(build: Any) -> None:
    async with build(engine="rpc") as (made, hosts):
        head = await made.up()
        assert "it fits on one node" in made.reasons[0]
        assert head.spec.servers == ()
        assert [host.engines() for host in hosts.values()] == [[], []]


async def test_a_killed_server_breaks_the_epoch_and_both_sides_say_why(build: Any) -> None:
    async with build(nodes=3, engine="rpc") as (made, hosts):
        head = await made.up()
        victim = next(e for e in made._engines._running if e.spec.stage == 2)
        os.kill(victim.pid, signal.SIGKILL)
        async with asyncio.timeout(25):
            reason = await head.wait_ended()
            assert isinstance(reason, EngineError)
            assert "the RPC server on gamma (::1) is gone" in reason.message
            while (state := hosts[GAMMA].engines()[0])["phase"] != "broken":  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
        assert state["message"] == "the engine of RPC server 2 was killed (signal 9)."
