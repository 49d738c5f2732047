"""`agent drain`: it waits until nothing runs, says what stays, and takes itself back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli import drain
from agent.errors import PeerError, UsageError

MOVES = {"deployment": "duo", "what": "head", "state": "it comes up on box (loading)",
         "stays": False}  # fmt: skip
STAYS = {"deployment": "trio", "what": "stage 1", "state": "it does not fit without den",
         "stays": True}  # fmt: skip


class Agent:
    """Answers with one list of work after the other, the last one for ever."""

    def __init__(self) -> None:
        self.script: list[list[dict[str, Any]]] = [[]]
        self.draining = False
        self.asked: list[tuple[str, Any]] = []

    def _answer(self) -> dict[str, Any]:
        work = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return {"name": "den", "draining": self.draining, "work": work}

    async def post(self, path: str, body: Any = None) -> dict[str, Any]:
        self.asked.append((path, body))
        self.draining = not body.get("off", False)
        return self._answer()

    async def get(self, path: str) -> dict[str, Any]:
        self.asked.append((path, None))
        return self._answer()


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    made = Agent()

    def call(settings: object, use: Callable[[Agent], Any], doing: str = "") -> Any:
        return asyncio.run(use(made))

    monkeypatch.setattr(drain, "call", call)
    monkeypatch.setattr(drain, "_POLL_S", 0.0)
    monkeypatch.setattr(drain, "_STAYS_S", 0.05)
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(drain.drain, arguments)


def test_it_returns_once_nothing_runs(agent: Agent) -> None:
    agent.script = [[MOVES, STAYS], [STAYS], []]
    done = run()
    assert done.exit_code == 0, done.output
    assert done.stdout == "den runs nothing now: it may be switched off.\n"
    assert agent.asked == [("/v1/drain", {"once": False}), ("/v1/drain", None), ("/v1/drain", None)]
    assert json.loads(run("--json").stdout) == {"name": "den", "draining": True, "work": []}


def test_what_stays_is_said_and_the_node_goes_on_draining(agent: Agent) -> None:
    file = STAYS | {"deployment": "own", "state": "its file /x.gguf lies on den alone"}
    agent.script = [[MOVES, STAYS, file], [STAYS, file]]
    done = run()
    assert isinstance(done.exception, PeerError)
    assert done.exception.exit_code != 0
    assert done.exception.message == (
        "trio stays: it does not fit without den; own stays: its file /x.gguf lies on den alone"
    )
    assert "den goes on draining" in done.exception.hint
    assert agent.draining


def test_once_is_until_the_agent_ends(agent: Agent) -> None:
    assert run("--once").exit_code == 0
    assert agent.asked[0] == ("/v1/drain", {"once": True})
    done = run("--once", "--off")
    assert isinstance(done.exception, UsageError)


def test_it_is_taken_back(agent: Agent) -> None:
    agent.script = [[MOVES]]
    done = run("--off")
    assert done.stdout == "den does not drain any more: it may be used again.\n"
    assert agent.asked == [("/v1/drain", {"off": True})]
    assert json.loads(run("--off", "--json").stdout)["work"] == [MOVES]


def test_one_that_is_taken_back_elsewhere_is_not_waited_for(agent: Agent) -> None:
    agent.script = [[MOVES]]
    asked = agent.get

    async def get(path: str) -> dict[str, Any]:
        agent.draining = False
        return await asked(path)

    agent.get = get  # type: ignore[method-assign] # somebody else's command
    done = run()
    assert isinstance(done.exception, PeerError)
    assert "taken back" in done.exception.message


def test_ctrl_c_leaves_it_draining(agent: Agent) -> None:
    async def get(path: str) -> dict[str, Any]:
        raise KeyboardInterrupt

    agent.script = [[MOVES]]
    agent.get = get  # type: ignore[method-assign] # the terminal's
    done = run()
    assert done.exit_code == 130
    assert "goes on draining" in done.stderr
    assert agent.draining


def test_wrong_words_are_refused(agent: Agent) -> None:
    for wrong in (["now"], ["--of"], ["--off", "x"]):
        assert run(*wrong).exit_code == 2
    assert agent.asked == []
