"""The agent's own looks: faults come into its health and go from it; the rest is left alone."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import config
from agent.doctor import look
from agent.doctor.facts import Agent, Facts, Machine
from agent.doctor.watch import Watch, tell
from agent.health import Health, HealthItem

UP = Facts(agent=Agent(name="box", mesh="home"))
LOW = replace(UP, machine=Machine(free_memory=1, synchronised=False))
PART = HealthItem("overlay-down", "error", "WireGuard fails", "x", "y")


def test_faults_come_and_go_and_those_of_other_parts_stay() -> None:
    health = Health()
    health.set(PART)
    tell(LOW, health)
    # A note (nobody keeps the clock right) is no fault.
    assert [item.code for item in health.items()] == ["overlay-down", "memory-low"]
    tell(UP, health)
    assert health.items() == [PART]


async def test_it_looks_again_and_again_and_a_mistake_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings, _ = config.load(Path(os.devnull), {}, [f"node.state_dir={tmp_path}"])
    health, looks = Health(), iter([LOW, OSError("of a mistake"), UP])
    done = asyncio.Event()

    loop = asyncio.get_running_loop()

    def found(*_: Any) -> Facts:
        facts = next(looks, None)
        if facts is None:
            loop.call_soon_threadsafe(done.set)
        if isinstance(facts, Exception):
            raise facts
        return facts or UP

    async def status() -> dict[str, Any]:
        return {"name": "box"}

    async def peers() -> dict[str, Any]:
        return {"peers": []}

    monkeypatch.setattr(look, "facts", found)
    watch = asyncio.create_task(Watch(settings, status, peers, health).run(0.0, 0.0))
    with caplog.at_level(logging.INFO):
        async with asyncio.timeout(30):
            await done.wait()
    watch.cancel()
    await asyncio.wait([watch])
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("health memory-low: Memory runs out") for line in said)
    assert "health memory-low: gone" in said
    assert "looking at this node failed" in said
    assert health.items() == []
