"""What `agent plan` and `agent ps` say of rings that run and could be better."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli import deployments, placing

KNOWN = "a better ring is known: 31 % fewer ms a token; moves when idle"
PLAN = {
    "model": "covey-mini", "context": 64, "stages": [], "reasons": ["1 node: it fits on one node"],
    "memory": [], "alternatives": [],
    "running": [{"name": "chat", "gain": KNOWN}, {"name": "other", "gain": ""}],
}  # fmt: skip
RUNS = {
    "name": "chat", "phase": "ready", "nodes": 1, "owner_name": "box", "owner_epoch": 3,
    "head_name": "box", "url": "http://[fd00::1]:7100", "progress": "answers", "stages": [],
    "rings": 1, "number": 1,
}  # fmt: skip


class Agent:
    """Answers with what it was made with, whatever it is asked."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self._answer = answer

    async def post(self, path: str, body: Any, timeout_s: float) -> dict[str, Any]:
        return self._answer

    async def get(self, path: str) -> dict[str, Any]:
        return self._answer


def answering(answer: dict[str, Any]) -> Callable[..., Any]:
    return lambda settings, use, doing="": asyncio.run(use(Agent(answer)))


def test_a_plan_says_what_is_known_of_rings_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "call", answering(PLAN))
    done = CliRunner().invoke(placing.plan, ["covey-mini"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert f"chat runs it: {KNOWN}" in lines
    assert "other runs it: no better ring is known" in lines


@pytest.mark.parametrize("gain", [KNOWN, ""])
def test_ps_says_it_where_there_is_something_to_say(
    monkeypatch: pytest.MonkeyPatch, gain: str
) -> None:
    monkeypatch.setattr(deployments, "call", answering({"deployments": [RUNS | {"gain": gain}]}))
    done = CliRunner().invoke(deployments.ps, [])
    assert done.exit_code == 0, done.output
    assert (f"chat: {KNOWN}" in done.output.splitlines()) is bool(gain)
