"""`--rings`: what is asked for, what is waited for, and how several rings are shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from agent.cli import deployments, placing
from agent.errors import PeerError

STAGE = {"node": "12D3KooWbox", "name": "box", "first": 0, "last": 6, "runs_on": ""}


def ring(number: int = 1, rings: int = 2, phase: str = "ready", **changes: Any) -> dict[str, Any]:
    fields = {
        "name": "m", "key": "m", "number": number, "rings": rings, "phase": phase,
        "progress": f"{phase} it is", "nodes": 1, "owner_name": "den", "owner_epoch": 3,
        "head_name": "box", "url": "", "reasons": ["1 node: it fits"], "stages": [STAGE],
        "error": None,
    }  # fmt: skip
    return fields | changes


def lacks(number: int, rings: int = 2) -> dict[str, Any]:
    error = {"kind": "PeerError", "message": "no worker is left", "hint": "Invite one."}
    return ring(number, rings, "waiting", error=error, stages=[], reasons=[])


class Agent:
    """Answers with one list of deployments after the other, the last one for ever."""

    def __init__(self) -> None:
        self.script: list[list[dict[str, Any]]] = [[ring()]]
        self.planned: dict[str, Any] = {}
        self.asked: list[tuple[str, Any, float]] = []

    async def post(self, path: str, body: Any = None, timeout_s: float = 10.0) -> dict[str, Any]:
        self.asked.append((path, body, timeout_s))
        return self.planned if path == "/v1/plan" else self.script[0][0]

    async def get(self, path: str) -> dict[str, Any]:
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return {"deployments": answer}


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    made = Agent()

    def call(settings: object, use: Callable[[Agent], Any], doing: str = "") -> Any:
        return asyncio.run(use(made))

    for module in (deployments, placing):
        monkeypatch.setattr(module, "call", call)
    monkeypatch.setattr(deployments, "_POLL_S", 0.0)
    monkeypatch.setattr(deployments, "_RINGS_SETTLE_S", 0.02)
    return made


def run(command: click.Command, *arguments: str) -> Result:
    return CliRunner().invoke(command, [*arguments, "--config", "/dev/null"])


def test_a_number_or_auto_is_asked_for_and_nothing_else(agent: Agent) -> None:
    for words, wanted in ((("--rings", "3"), 3), (("--rings", "auto"), None), ((), 1)):
        agent.script = [[ring(n, wanted or 2) for n in range(1, (wanted or 2) + 1)]]
        assert run(deployments.deploy, "covey-mini", *words).exit_code == 0
        path, body, timeout_s = agent.asked[-1]
        assert (path, body["rings"]) == ("/v1/deployments", wanted)
        # Links are measured for the plan of several.
        assert (timeout_s < placing.PLAN_TIMEOUT_S) is (wanted == 1)
    for wrong in ("0", "65", "two", "-1", "1.5", "²"):
        done = run(deployments.deploy, "covey-mini", f"--rings={wrong}")
        assert done.exit_code == 2
        assert "neither 1 to 64 nor auto" in done.output


def test_it_waits_for_all_rings_and_one_may_wait_for_a_moment(agent: Agent) -> None:
    loads = ring(2, phase="loading")
    agent.script = [[ring(), loads], [ring(), lacks(2)], [ring(), loads], [ring(), ring(2)]]
    done = run(deployments.deploy, "covey-mini", "--rings", "2")
    assert done.exit_code == 0, done.output
    assert "ring 1 of 2:\n1 node: it fits\n" in done.stdout
    assert done.stdout.endswith("All rings of m are ready.\n")
    said = json.loads(run(deployments.deploy, "covey-mini", "--rings", "2", "--json").stdout)
    assert [one["number"] for one in said["deployments"]] == [1, 2]


def test_a_ring_that_finds_no_room_is_an_error_that_says_what_runs(agent: Agent) -> None:
    agent.script = [[ring(), lacks(2)]]
    done = run(deployments.deploy, "covey-mini", "--rings", "2")
    assert isinstance(done.exception, PeerError)
    assert done.exception.message == "ring 2: no worker is left"
    assert "The other rings answer. The agent goes on trying" in done.exception.hint


def test_ps_has_a_line_for_each_ring_and_says_how_many_answer(agent: Agent) -> None:
    agent.script = [[ring(1, 3), lacks(2, 3), ring(3, 3), ring(1, 1, name="solo")]]
    done = run(deployments.ps)
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:5]] == ["m 1/3", "m 2/3", "m 3/3", "solo"]
    assert "waiting it is" in lines[2]
    assert lines[5] == "2 of 3 rings of m answer."
    assert "m 3/3:" in lines
    assert "solo:" not in lines


def test_plan_shows_each_ring_the_total_and_other_numbers(agent: Agent) -> None:
    each = {"stages": [STAGE], "reasons": ["why"], "tokens_s": 40.0, "alternatives": [],
            "memory": [{"name": "box", "needed": 1 << 20, "free": 2 << 20}]}  # fmt: skip
    agent.planned = {
        "model": "m", "context": 64, "objective": "auto", "rings": [each, each],
        "tokens_s": 80.0, "streams": 16,
        "otherwise": [{"rings": 1, "tokens_s": 50.0, "names": [["box", "den"]]},
                      {"rings": 3, "tokens_s": 70.0, "names": [["box"], ["den"], ["nas"]]}],
    }  # fmt: skip
    done = run(placing.plan, "m", "--rings", "2")
    assert done.exit_code == 0, done.output
    assert "ring 2 of 2, 40.0 tokens/s:" in done.stdout
    assert "2 rings: 80.0 tokens/s in all, for 16 answers at once" in done.stdout
    assert [line.split() for line in done.stdout.splitlines()[-2:]] == [
        ["1", "ring", "box,", "den", "50.0"], ["3", "rings", "box;", "den;", "nas", "70.0"],
    ]  # fmt: skip
