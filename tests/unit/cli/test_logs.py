"""`agent logs`: lines of all nodes, each once; what could not be had is said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli import logs
from agent.errors import CoveyError, EngineError, PeerError, UsageError


def tail(*lines: str, first: int = 0, state: str = "runs", pid: int = 7) -> dict[str, Any]:
    return {"title": "stage 1", "pid": pid, "first": first, "lines": list(lines), "state": state}


def node(name: str, *tails: dict[str, Any], error: str = "") -> dict[str, Any]:
    return {"node": f"12D3KooW{name}", "name": name, "error": error, "tails": list(tails)}


class Agent:
    """Answers with one thing after the other, then interrupts."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.asked: list[str] = []

    async def get(self, path: str) -> Any:
        self.asked.append(path)
        if not self.script:
            raise KeyboardInterrupt
        answer = self.script.pop(0)
        if isinstance(answer, CoveyError):
            raise answer
        return {"deployment": "m", "nodes": answer}


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    made = Agent()

    def call(settings: object, use: Callable[[Agent], Any], doing: str = "") -> Any:
        return asyncio.run(use(made))

    monkeypatch.setattr(logs, "call", call)
    monkeypatch.setattr(logs, "_POLL_S", 0.0)
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(logs.logs, arguments)


def test_each_line_has_its_node_and_stage(agent: Agent) -> None:
    ended = tail("no more", state="ended: stage 1 was killed")
    agent.script = [[node("box", ended), node("den", tail("a", "b"))]]
    done = run("m", "--lines", "5", "--node", "den")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "box  stage 1  no more", "box  stage 1  (ended: stage 1 was killed)",
        "den  stage 1  a", "den  stage 1  b",
    ]  # fmt: skip
    assert agent.asked == ["/v1/logs?name=m&node=den&lines=5"]


def test_following_shows_each_line_once(agent: Agent) -> None:
    agent.script = [
        [node("box", tail("a", "b"))],
        [node("box", error="it does not answer")],
        [node("box", error="it does not answer")],
        [node("box", tail("b", "c", first=1), tail("d", pid=8))],
        [node("box", tail("c", first=2, state="was stopped"), tail("d", pid=8))],
        [node("box", tail("c", first=2, state="was stopped"), tail("d", pid=8))],
    ]
    done = run("m", "--follow")
    assert done.exit_code == 130
    said = [line.removeprefix("box  stage 1  ") for line in done.stdout.splitlines()]
    assert said == ["a", "b", "c", "d", "(was stopped)"]
    assert done.stderr == "box: it does not answer\n"
    agent.script = [[node("box", tail("a"))]]
    lines = run("m", "--follow", "--json").stdout.splitlines()
    assert json.loads(lines[0]) == {"node": "box", "engine": "stage 1", "pid": 7, "line": "a"}


def test_who_does_not_answer_is_said_and_the_others_are_shown(agent: Agent) -> None:
    agent.script = [[node("box", tail("a")), node("den", error="it does not answer")]]
    done = run("m")
    assert (done.exit_code, done.stdout) == (0, "box  stage 1  a\n")
    assert done.stderr == "den: it does not answer\n"


def test_where_nothing_can_be_had_it_fails(agent: Agent) -> None:
    agent.script = [[node("box"), node("den", error="it does not answer")]]
    done = run("m")
    assert isinstance(done.exception, PeerError)
    agent.script = [[node("box")]]
    done = run("m")
    assert isinstance(done.exception, EngineError)
    assert "no engine of m has run" in done.exception.message
    agent.script = [UsageError("m is not deployed in this mesh")]
    done = run("m")
    assert isinstance(done.exception, UsageError)


def test_json_is_the_whole_answer(agent: Agent) -> None:
    agent.script = [[node("box", tail("a"))]]
    assert json.loads(run("--json").stdout)["nodes"][0]["tails"][0]["lines"] == ["a"]
    assert agent.asked == ["/v1/logs?name=&node=&lines=50"]


@pytest.mark.parametrize("wrong", [["--lines", "0"], ["--lines", "51"], ["--lines", "x"],
                                   ["a", "b"], ["--nod"]])  # fmt: skip
def test_wrong_words_are_refused(agent: Agent, wrong: list[str]) -> None:
    assert run(*wrong).exit_code == 2
    assert agent.asked == []
