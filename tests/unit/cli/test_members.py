"""`agent members`, `revoke`, `leave`, `rename`, `grant`, `rotate`, `root-key`, `invite --qr`."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import segno
from click.testing import CliRunner, Result

from agent.cli import members, mesh
from agent.errors import CoveyError, NotRunning, UsageError
from agent.membership.store import Membership, StateDir

MEMBER = {
    "name": "box", "node": "12D3KooWbox", "self": True, "roles": ["worker", "issuer"],
    "tags": ["home"], "ipv6": "fd00::1", "ipv4": "10.77.0.1", "control_addresses": [],
    "certificate_left_s": 864000.0, "state": "member", "since": None, "reason": "", "told": True,
}  # fmt: skip
LOST = MEMBER | {"name": "pi", "self": False, "state": "revoked", "reason": "lost", "tags": [],
                 "certificate_left_s": -5.0}  # fmt: skip


class Agent:
    """A stand-in for the running agent: answers what it was given, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.running = True

    async def get(self, path: str) -> Any:
        return self._answer("GET", path, None)

    async def post(self, path: str, body: Any = None) -> Any:
        return self._answer("POST", path, body)

    def _answer(self, method: str, path: str, body: Any) -> Any:
        if not self.running:
            raise NotRunning("no agent is running", hint="Start it.")
        self.asked.append((method, path, body))
        answer = self.answers[path]
        if isinstance(answer, CoveyError):
            raise answer
        return answer() if callable(answer) else answer


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Agent:
    made = Agent()

    def call(settings: object, use: Callable[[Agent], Any], doing: str = "") -> Any:
        return asyncio.run(use(made))

    for module in (members, mesh):
        monkeypatch.setattr(module, "call", call)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setenv("COVEY_CONFIG", os.devnull)
    monkeypatch.setenv("COVEY_NODE_STATE_DIR", str(tmp_path / "state"))
    return made


def run(command: click.Command, *arguments: str) -> Result:
    result = CliRunner().invoke(command, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def founded(tmp_path: Path) -> Membership:
    with StateDir(tmp_path / "state").lock() as state:
        return state.create_mesh("home", "box", time.time())


def test_members_are_listed_with_how_they_stand(agent: Agent) -> None:
    agent.answers["/v1/members"] = {"members": [MEMBER, LOST]}
    lines = run(members.members).output.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "ROLES", "TAGS", "IPV6", "IPV4", "CERTIFICATE",
                                "NODE"]  # fmt: skip
    assert lines[1].split()[:5] == ["box", "*", "member", "worker,issuer", "home"]
    assert "10 d" in lines[1]
    assert "revoked (lost)" in lines[2] and "ended" in lines[2] and " - " in lines[2]
    assert json.loads(run(members.members, "--json").output)["members"][1]["name"] == "pi"
    agent.answers["/v1/members"] = {"members": [MEMBER | {"draining": True}]}
    assert "member, draining" in run(members.members).output


def test_a_node_is_revoked(agent: Agent) -> None:
    agent.answers["/v1/revoke"] = {"node": "12D3KooWpi", "name": "pi"}
    result = run(members.revoke, "pi", "--reason", "lost in a train")
    assert agent.asked == [("POST", "/v1/revoke", {"node": "pi", "reason": "lost in a train"})]
    assert "pi (12D3KooWpi) is out of the mesh." in result.output
    assert "agent rotate" in result.stderr


def test_rename_takes_one_or_two_words(agent: Agent) -> None:
    agent.answers["/v1/rename"] = MEMBER | {"name": "attic"}
    assert "is called attic now." in run(members.rename, "attic").output
    run(members.rename, "pi", "attic")
    assert [body for _, _, body in agent.asked] == [
        {"name": "attic", "node": ""},
        {"name": "attic", "node": "pi"},
    ]
    with pytest.raises(UsageError, match="too many names"):
        run(members.rename, "a", "b", "c")
    assert run(members.rename).exit_code == 2


def test_grants(agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.answers["/v1/grant"] = MEMBER | {"told": False}
    monkeypatch.chdir(tmp_path)
    result = run(members.grant, "pi", "--role", "relay", "--tag", "a", "--root-key", "safe")
    assert agent.asked[0][2] == {
        "node": "pi", "roles": ("relay",), "tags": ("a",), "root_key": str(tmp_path / "safe"),
    }  # fmt: skip
    assert "box is worker, issuer with home for 10 d. It is off" in result.output
    run(members.grant, "pi", "--no-tags")
    assert agent.asked[1][2] == {"node": "pi", "tags": ()}
    for wrong in ((), ("--tag", "a", "--no-tags")):
        with pytest.raises(UsageError):
            run(members.grant, "pi", *wrong)
    assert run(members.grant, "pi", "--role", "king").exit_code == 2


def test_rotate(agent: Agent) -> None:
    now = time.time()
    agent.answers["/v1/rotate"] = {
        "generation": 3, "active_at": now + 43201, "retired_at": now + 86401,
    }  # fmt: skip
    output = run(members.rotate).output
    assert agent.asked == [("POST", "/v1/rotate", {"overlap_s": 86400.0, "force": False})]
    assert output == "Network key 3 is used in 12 h; the old one ends in 24 h.\n"
    run(members.rotate, "--overlap", "30m", "--force")
    assert agent.asked[1][2] == {"overlap_s": 1800.0, "force": True}


def test_leaving_with_a_running_agent(agent: Agent, tmp_path: Path) -> None:
    founded(tmp_path)
    running = StateDir(tmp_path / "state").lock()

    def left() -> dict[str, Any]:
        running.unlock()
        return {"mesh": "home", "name": "box", "node": "x", "told": 2, "others": 3}

    agent.answers["/v1/leave"] = left
    output = run(members.leave, "--force").output
    assert agent.asked == [("POST", "/v1/leave", {"force": True})]
    assert "left home: 2 members said that they know." in output
    assert "node.key" in output and "root.key" in output
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["lock"]


def test_an_agent_that_may_not_leave_keeps_everything(agent: Agent, tmp_path: Path) -> None:
    founded(tmp_path)
    agent.answers["/v1/leave"] = UsageError("the root key lies here")
    with pytest.raises(UsageError, match="lies here"):
        run(members.leave)
    assert StateDir(tmp_path / "state").membership() is not None


def test_leaving_without_an_agent(agent: Agent, tmp_path: Path) -> None:
    agent.running = False
    with pytest.raises(CoveyError, match="in no mesh"):
        run(members.leave)
    founded(tmp_path)
    with pytest.raises(CoveyError, match="root key lies here"):
        run(members.leave)
    assert StateDir(tmp_path / "state").membership() is not None
    output = run(members.leave, "--force").output
    assert "no other member of home learns that this node is gone" in output
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["lock"]


def test_leaving_gets_rid_of_a_damaged_membership(agent: Agent, tmp_path: Path) -> None:
    agent.running = False
    founded(tmp_path)
    (tmp_path / "state" / "certificate").write_bytes(b"junk")
    with pytest.raises(CoveyError, match="damaged"):
        run(members.leave)
    removed = json.loads(run(members.leave, "--force", "--json").output)["removed"]
    assert {"certificate", "node.key"} <= set(removed)


def test_leaving_while_an_agent_hangs(agent: Agent, tmp_path: Path) -> None:
    """It holds the lock and does not answer: nothing is taken away under its feet."""
    founded(tmp_path)
    agent.running = False
    holder = StateDir(tmp_path / "state").lock()
    with holder, pytest.raises(CoveyError, match="an agent already runs"):
        run(members.leave, "--force")
    assert StateDir(tmp_path / "state").membership() is not None


def test_the_root_key_moves_through_the_agent_or_without_it(agent: Agent, tmp_path: Path) -> None:
    safe = tmp_path / "safe"
    agent.answers["/v1/root-key/move"] = {"moved": str(safe), "grant_left_s": 86400.0 * 365}
    output = run(mesh.mesh, "root-key", "move", str(safe)).output
    assert agent.asked == [("POST", "/v1/root-key/move", {"path": str(safe)})]
    assert "and here no more" in output and "another 365 d" in output
    agent.running = False
    with pytest.raises(CoveyError, match="in no mesh"):
        run(mesh.mesh, "root-key", "move", str(safe))
    founded(tmp_path)
    answer = json.loads(run(mesh.mesh, "root-key", "move", str(safe), "--json").output)
    assert answer["moved"] == str(safe) and safe.exists()
    assert not (tmp_path / "state" / "root.key").exists()
    with pytest.raises(CoveyError, match="not on this node"):
        run(mesh.mesh, "root-key", "move", str(tmp_path / "again"))


def test_a_ticket_as_a_qr_code(agent: Agent) -> None:
    ticket = "covey1" + "abcdefghijklmnopqrstuvwxyz234567" * 12
    agent.answers["/v1/invite"] = {"ticket": ticket}
    plain = run(mesh.invite).stdout.splitlines()
    assert plain == [ticket]
    lines = run(mesh.invite, "--qr").stdout.splitlines()
    assert lines[0] == ticket
    expected = segno.make_qr(ticket.upper(), error="l", mode="alphanumeric", boost_error=False)
    assert expected.version < 16
    assert max(map(len, lines[1:])) <= 80  # it fits a terminal
    # read it back: each character is two modules above each other, a full block two light ones
    light = {"█": (True, True), "▀": (True, False), "▄": (False, True), " ": (False, False)}
    rows: list[list[int]] = []
    for line in lines[1:]:
        pairs = [light[character] for character in line]
        rows += [[int(not upper) for upper, _ in pairs], [int(not lower) for _, lower in pairs]]
    size, border = len(expected.matrix), 4
    cut = [row[border : border + size] for row in rows[border : border + size]]
    assert cut == [list(row) for row in expected.matrix]
