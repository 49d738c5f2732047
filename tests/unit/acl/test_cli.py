"""`agent acl`: what it prints, its exit codes, and that it answers without an agent as well."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import acl_worlds as worlds
import click.testing
import pytest
from acl_worlds import COVEY

from agent.acl import verdict
from agent.acl.policy import parse
from agent.cli import acl as command
from agent.cli import mesh
from agent.config import Config
from agent.errors import ConfigError, NotRunning, StateError, UsageError

RULE = '[[rule]]\nfrom = ["tag:ops"]\nto = "*"\nports = ["tcp:22"]\naction = "{}"\n'
MEMBERS = [worlds.subject(0), *(worlds.subject(n, tags=("ops",)) for n in range(1, 30))]


class Client:
    """Stands for the agent's client: answers as the service does, from this file's members."""

    description: dict[str, Any]

    async def post(self, path: str, body: dict[str, str]) -> dict[str, Any]:
        assert path == "/v1/acl/check"
        policy = parse(RULE.format("allow").encode(), "/etc/covey/acl.toml")
        question = (body["src"], body["dst"], body["port"])
        return verdict.answer(policy, COVEY, MEMBERS, MEMBERS[0].node, question)

    async def get(self, path: str) -> dict[str, Any]:
        assert path == "/v1/acl"
        return self.description


Use = Callable[[Client], Awaitable[dict[str, Any]]]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client()

    def call(settings: Config, use: Use) -> dict[str, Any]:
        waiting = use(made).__await__()
        try:
            next(waiting)
        except StopIteration as end:
            return dict(end.value)
        raise AssertionError("a client that waits")

    monkeypatch.setattr(command, "call", call)
    return made


def run(*arguments: str, **variables: str) -> click.testing.Result:
    kept = {name: None for name in os.environ if name.startswith("COVEY_")}
    runner = click.testing.CliRunner(env={**kept, "COVEY_CONFIG": os.devnull, **variables})
    done = runner.invoke(command.acl, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_a_verdict_is_a_sentence_and_an_exit_code(client: Client) -> None:
    done = run("check", "node-1", "node-0", "22")
    assert done.exit_code == 0
    line = "node-1 may reach node-0 on tcp 22: rule 1 (acl.toml line 1) allows it.\n"
    assert done.stdout == line
    done = run("check", "node-0", "node-1", "udp:53")
    assert done.exit_code == 11
    assert done.stdout.splitlines()[1:] == [
        "Each node enforces its own file for what comes in; this is by ours."
    ]


def test_a_verdict_in_json(client: Client) -> None:
    done = run("check", "node-0", "node-1", "23", "--json")
    assert done.exit_code == 11
    found = json.loads(done.stdout)
    assert (found["allowed"], found["here"]) == (False, False)
    assert found["verdicts"][0]["rule"] == "default"


def test_many_verdicts_show_the_denials_first(client: Client) -> None:
    done = run("check", "*", "tag:ops", "22")
    assert done.exit_code == 11
    first, *lines = done.stdout.splitlines()
    assert first == "812 of 841 pairs of * and tag:ops may."
    assert all("node-0 may not reach" in line for line in lines[:20])
    assert lines[20] == "  … and 821 more; --json has all."


def test_the_help_tells_the_exit_codes() -> None:
    text = " ".join(run("check", "--help").stdout.split())
    assert "Exit code: 0 when it is allowed" in text
    assert "11 when it is denied" in text


def test_a_word_that_names_nobody_is_an_error(client: Client) -> None:
    with pytest.raises(UsageError):
        run("check", "nobody", "node-0", "22")


def count(packets: int | None) -> dict[str, int | None]:
    return {"packets": packets, "bytes": packets}


def test_the_rules_are_shown_with_what_they_matched(client: Client) -> None:
    rule = {"line": 1, "from": ["tag:ops"], "to": ["*"], "ports": ["tcp:22"], "action": "allow"}
    client.description = {
        "file": "/etc/covey/acl.toml", "state": "loaded", "fault": None, "enforced": True,
        "reason": None, "table": "inet covey-covey0",
        "rules": [{"number": 1, "here": True, **rule, **count(7)},
                  {"number": 2, "here": False, **rule, **count(None)}],
        "covey": [{"what": "ping", "ports": "icmp"}],
        "counters": {"covey": count(5), "default": count(3), "strangers": count(0),
                     "around": count(2), "forwarded": count(None)},
    }  # fmt: skip
    lines = run("show").stdout.splitlines()
    assert lines[:2] == [
        "The rules are from /etc/covey/acl.toml.",
        "Enforced by nftables, table inet covey-covey0.",
    ]
    assert [line.split() for line in lines[3:7]] == [
        ["1", "allow", "tag:ops", "*", "tcp:22", "7"],
        ["2", "allow", "tag:ops", "*", "tcp:22", "other", "nodes"],
        ["covey", "allow", "*", "*", "icmp", "5"],
        ["default", "deny", "*", "*", "*", "3"],
    ]
    assert lines[7:] == ["2 packets to overlay addresses by other interfaces were dropped."]
    assert json.loads(run("show", "--json").stdout) == client.description
    broken = {"state": "broken", "fault": "acl.toml, rule 1: no. Do it.", "enforced": False}
    client.description |= {**broken, "reason": "nft is not installed. Install it."}
    assert run("show").stdout.splitlines()[:2] == [
        "acl.toml, rule 1: no. Do it. What was in force before that holds.",
        "Not enforced: nft is not installed. Install it.",
    ]
    client.description |= {"state": "absent"}
    assert "does not exist" in run("show").stdout


@pytest.fixture
def state(tmp_path: Path) -> list[str]:
    """Return the flags for a state directory of its own, where no agent runs."""
    return ["--set", f"node.state_dir={tmp_path / 'state'}", "--set", f"node.socket={tmp_path}/s"]


def test_without_an_agent_the_stored_members_answer(tmp_path: Path, state: list[str]) -> None:
    runner = click.testing.CliRunner(env={"COVEY_CONFIG": os.devnull})
    made = runner.invoke(mesh.mesh, ["create", "home", "--json", "--set", "node.name=a", *state])
    assert made.exit_code == 0, made.exception
    rules = tmp_path / "acl.toml"
    place = ["--set", f"network.acl={rules}"]
    done = run("check", "a", "role:admin", "icmp", *place, *state)
    assert (done.exit_code, done.stdout) == (0, "a reaches itself: that is never filtered.\n")
    assert "No agent is running" in done.stderr
    rules.write_text("[[rule]]\n")
    with pytest.raises(ConfigError, match=r"acl.toml, rule 1 \(line 1\), from is missing"):
        run("check", "a", "a", "22", *place, *state)


def test_without_an_agent_and_a_mesh_there_is_no_answer(state: list[str]) -> None:
    with pytest.raises(NotRunning, match="no agent is running"):
        run("check", "a", "b", "22", *state)
    with pytest.raises(NotRunning, match="no agent is running"):
        run("show", *state)


def test_a_damaged_state_is_told(tmp_path: Path, state: list[str]) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    damaged = tmp_path / "state" / "mesh.json"
    damaged.write_text("{")
    damaged.chmod(0o600)
    with pytest.raises(StateError, match=r"mesh\.json"):
        run("check", "a", "b", "22", *state)
