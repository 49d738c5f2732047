"""A real agent whose control plane ends by a fault, or cannot start at first, is whole again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import enrol
from agent.config import Config, Http, Network, Node
from agent.control import host
from agent.control.bridge import TrioThread
from agent.daemon import Agent
from agent.membership.store import StateDir

SOON_S = 30.0
CODE = "control-plane-down"


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Agent]:
    """The only member of a mesh, in this process."""
    settings = Config(
        node=Node(name="box", state_dir=str(folder / "state"), socket=str(folder / "agent.sock")),
        # Not the default ports: other labs of the same sandbox hold some of these.
        network=Network(
            interface="covey-fault",
            backend="userspace",
            mdns=False,
            listen_port=24820,
            control_port=24001,
            discovery_port=24001,
            overlay_port=24070,
            beat_port=24071,
            relay_ports="24840-24859",
        ),
        http=Http(listen="127.0.0.1:24074"),
    )
    enrol.create_mesh(settings, "home", now=time.time())
    with StateDir(settings.state_dir).lock() as state:
        membership = state.membership()
        assert membership is not None
        agent = Agent(settings, membership)
        ready = asyncio.Event()
        task = asyncio.create_task(agent.run(ready.set))
        try:
            async with asyncio.timeout(SOON_S):
                await ready.wait()
            yield agent
        finally:
            agent.request_stop()
            async with asyncio.timeout(SOON_S):
                await task


def fault(agent: Agent) -> dict[str, Any] | None:
    """Return what `agent status` shows of it."""
    items = {item.code: msgspec.to_builtins(item) for item in agent._health.items()}
    return items.get(CODE)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 - it changes in another thread
            await asyncio.sleep(0.01)


async def test_a_fault_is_shown_while_it_is_mended_and_not_after(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        assert fault(agent) is None
        before = agent._control.addresses
        inside = agent._control._bridge._inside
        assert inside is not None

        async def deadly() -> None:
            raise OSError("a fault in one task")

        inside.token.run_sync_soon(inside.nursery.start_soon, deadly)
        await until(lambda: fault(agent) is not None)
        shown = fault(agent)
        assert shown is not None
        assert (
            "ended by a fault: OSError: a fault in one task; it is started again at"
            in shown["text"]
        )
        assert shown["what_to_do"]
        await until(lambda: fault(agent) is None)
        assert agent._control.running
        assert agent._control.addresses == before


async def test_an_agent_without_libp2p_runs_and_tries_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = host._load
    tried: list[int] = []

    def broken(bridge: TrioThread, **made_with: Any) -> Any:
        tried.append(1)
        if len(tried) < 3:
            raise ImportError("no libp2p")
        return load(bridge, **made_with)

    monkeypatch.setattr(host, "_load", broken)
    async with running(tmp_path) as agent:
        shown = fault(agent)
        assert shown is not None
        assert "cannot start: ImportError: no libp2p; it is started again at" in shown["text"]
        await until(lambda: fault(agent) is None)
        assert agent._control.running
        assert len(tried) == 3
