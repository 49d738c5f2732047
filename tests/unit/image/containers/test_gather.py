"""Tickets are handed out once for each node that is missing, and none is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from image.containers import gather
from image.containers.gather import Gatherer
from image.node import asking


class Agent:
    """Answers as the first node's agent does; `None` while it does not run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.members: list[tuple[str, str]] | None = None
        self.deployed: list[str] = []
        self.wishes: list[dict[str, Any]] = []
        self.refuses = ""
        monkeypatch.setattr(asking, "get", self.get)
        monkeypatch.setattr(asking, "post", self.post)

    def get(self, socket: Path, what: str) -> dict[str, Any] | None:
        if self.members is None:
            return None
        if what == "/v1/replicas":
            return {"replicas": [], "deployed": self.deployed}
        return {"members": [{"name": name, "state": state} for name, state in self.members]}

    def post(
        self, socket: Path, what: str, wish: dict[str, Any], within_s: float
    ) -> dict[str, Any]:
        assert what == "/v1/invite"
        if self.refuses:
            raise asking.Refused(self.refuses)
        self.wishes.append(wish)
        return {"ticket": f"ticket-{len(self.wishes)}"}


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    return Agent(monkeypatch)


def left(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_each_missing_node_gets_a_ticket_of_its_own(agent: Agent, tmp_path: Path) -> None:
    one = Gatherer(Path("s"), tmp_path)
    assert one.look(["b", "c"], 0.0) == ["b", "c"]
    assert left(tmp_path) == {}
    agent.members = [("a", "member"), ("b", "revoked")]
    assert one.look(["b", "c"], 1.0) == ["b", "c"]
    assert left(tmp_path) == {"b": "ticket-1\n", "c": "ticket-2\n"}
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    assert all(wish["uses"] == 1 and wish["roles"] == ["worker"] for wish in agent.wishes)
    agent.members.append(("c", "member"))
    assert one.look(["b", "c"], 2.0) == ["b"]
    assert left(tmp_path) == {"b": "ticket-1\n"}
    # Before its end, the other one gets another.
    assert one.look(["b", "c"], 1.0 + gather._RENEWED_S) == ["b"]
    assert left(tmp_path) == {"b": "ticket-3\n"}
    agent.members.append(("b", "member"))
    assert one.look(["b", "c"], 600.0) == []
    assert left(tmp_path) == {}


def test_nothing_is_handed_out_twice_over(agent: Agent, tmp_path: Path) -> None:
    agent.members = [("a", "member"), ("b", "member")]
    assert Gatherer(Path("s"), tmp_path).look(["b"], 0.0) == []
    assert agent.wishes == []


def test_what_nobody_used_is_taken_back(agent: Agent, tmp_path: Path) -> None:
    agent.members = []
    one = Gatherer(Path("s"), tmp_path)
    one.look(["b"], 0.0)
    one.close()
    assert left(tmp_path) == {}


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> int:
    monkeypatch.setattr(gather, "_POLL_S", 0.0)
    monkeypatch.setattr(sys, "argv", ["gather", "--tickets", str(folder), *more])
    monkeypatch.setattr(gather.signal, "signal", lambda *_: None)
    return gather.main()


def test_the_model_is_deployed_over_all_nodes_once(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def called(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(gather.subprocess, "run", called)
    agent.members = [("b", "member"), ("c", "member")]
    assert run(monkeypatch, tmp_path, "--deploy", "m", "b", "c") == 7
    assert commands == [["agent", "deploy", "m", "--nodes", "3"]]
    agent.deployed = ["m"]
    assert run(monkeypatch, tmp_path, "--deploy", "m", "b", "c") == 0
    assert run(monkeypatch, tmp_path, "b", "c") == 0
    assert len(commands) == 1


def test_a_refusal_is_one_line_and_leaves_no_ticket(
    agent: Agent,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    agent.members, agent.refuses = [], "this node makes no tickets. Ask an issuer."
    assert run(monkeypatch, tmp_path, "b") == 1
    assert capsys.readouterr().err == "this node makes no tickets. Ask an issuer.\n"
    agent.refuses = ""
    assert run(monkeypatch, tmp_path / "none", "b") == 1
    assert "No ticket can be left at" in capsys.readouterr().err
    assert left(tmp_path) == {}
