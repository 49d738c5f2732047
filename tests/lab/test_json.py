"""Every --json answer of a real mesh has the fields that docs/commands.md says, and no others."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.demo.mesh import GATEWAY, DemoMesh
from agent.models import bundled

DOC = Path(__file__).parents[2] / "docs" / "commands.md"
JSON = DOC.read_text().partition("\n## Exit codes\n")[0]
ROWS = dict(re.findall(r"^\| `((?:agent|gateway) [^`]*)` \| (.*) \|$", JSON, re.M))


def documented(command: str, part: int = 0) -> set[str]:
    """Return the fields of a command; of those that answer in several ways the part-th."""
    return set(re.findall(r"`(\w+)`", ROWS[command].split(";")[part]))


@pytest.mark.parametrize(
    "words",
    ["acl show", "catalogue", "catalogue covey-mini", "doctor", "logs", "logs duo", "members",
     "models", "netcheck", "peers", "ping beta --count 1", "plan covey-mini", "ps", "status",
     "invite", "verify"],
)  # fmt: skip
def test_what_is_asked(mesh: DemoMesh, words: str) -> None:
    done = mesh.try_agent("alpha", *words.split(), "--json")
    assert done.returncode in (0, 1), done.stderr
    assert set(json.loads(done.stdout)) == documented(f"agent {named(words)}")


def named(words: str) -> str:
    """Return the command of what was typed."""
    return " ".join(words.split()[: 2 if words.startswith(("acl", "config", "mesh")) else 1])


def test_an_answer_that_is_a_no(mesh: DemoMesh) -> None:
    done = mesh.try_agent("alpha", "acl", "check", "alpha", "beta", "22", "--json")
    assert done.returncode == 11
    assert set(json.loads(done.stdout)) == documented("agent acl check")


def test_each_event_is_a_line(mesh: DemoMesh) -> None:
    lines = mesh.agent("alpha", "events", "--json").splitlines()
    assert {frozenset(json.loads(line)) for line in lines} == {
        frozenset(documented("agent events"))
    }


def test_several_rings_have_another_plan(mesh: DemoMesh) -> None:
    found = mesh.ask("alpha", "plan", "covey-mini", "--rings", "2")
    assert set(found) == documented("agent plan", 1)


def test_what_changes_something(mesh: DemoMesh) -> None:
    def ask(*words: str) -> dict[str, Any]:
        answer: dict[str, Any] = mesh.ask("beta", *words)
        return answer

    file = str(bundled.path())
    for words in (
        ("deploy", "covey-mini", "--name", "shape", "--nodes", "1"),
        ("undeploy", "shape"),
        ("drain", "--off"),
        ("pull", file, "--name", "copy"),
        ("rm", "copy"),
    ):
        assert set(ask(*words)) == documented(f"agent {words[0]}"), words
    for words in (("rename", "gamma", "gamma"), ("grant", "gamma", "--tag", "blue")):
        assert set(mesh.ask("alpha", *words)) == documented(f"agent {words[0]}"), words


def test_settings_are_keys(mesh: DemoMesh) -> None:
    for words in ("show", "sample"):
        found = mesh.ask("alpha", "config", words)
        assert "network.listen_port" in found
        assert {frozenset(one) for one in found.values()} == {
            frozenset(documented(f"agent config {words}"))
        }


def test_the_gateways(mesh: DemoMesh) -> None:
    store = ["--store", str(mesh.root / "shapes.db")]
    typed = {
        "gateway status": [],
        "gateway keys create": ["house", *store],
        "gateway keys list": store,
        "gateway usage": store,
        "gateway keys revoke": ["house", *store],
    }
    for command, more in typed.items():
        words = [sys.executable, "-m", *command.split(), *more, "--json"]
        done = mesh.machine(GATEWAY).run(words, env=mesh.environment(GATEWAY))
        assert done.returncode == 0, done.stderr
        assert set(json.loads(done.stdout)) == documented(command), command


def test_tab_completes_what_the_mesh_has(mesh: DemoMesh) -> None:
    def complete(line: str) -> set[str]:
        variables = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")),
                     "_AGENT_COMPLETE": "bash_complete"}  # fmt: skip
        done = mesh.machine("beta").run(
            [sys.executable, "-m", "agent"], env=mesh.environment("beta") | variables
        )
        assert done.returncode == 0, done.stderr
        return {line.removeprefix("plain,") for line in done.stdout.split()}

    assert complete("agent ping ") >= {"alpha", "gamma", GATEWAY}
    assert complete("agent undeploy tr") == {"trio"}
    assert "covey-mini" in complete("agent deploy cov")
