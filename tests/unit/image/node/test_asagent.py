"""Root's commands on the appliance: whose they are, and as whom they run."""

from __future__ import annotations

import os
import pwd
from types import SimpleNamespace

import pytest

from image.node import asagent
from image.node.asagent import is_the_agents, settle

MACHINES = (["update", "--status"], ["update", "x"], ["--json", "update"], ["factory-reset"])


@pytest.mark.parametrize("arguments", MACHINES)
def test_an_update_and_a_reset_are_roots_own(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "setresuid", None)  # called, it would fail
    assert not is_the_agents(arguments)
    settle(arguments)


@pytest.mark.parametrize("arguments", [["mesh", "create", "update"], ["--version"], []])
def test_all_else_runs_as_the_agent_and_where_it_is(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, object]] = []
    user = SimpleNamespace(pw_uid=900, pw_gid=901)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: user if name == "covey" else None)
    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, lambda *ids, name=name: done.append((name, ids)))
    monkeypatch.setattr(os, "environ", {"HOME": "/root", "COVEY_NODE_STATE_DIR": "/elsewhere"})
    settle(arguments)
    # Groups first: without rights nobody gives them up.
    assert done == [
        ("setgroups", ([],)), ("setresgid", (901,) * 3), ("setresuid", (900,) * 3),
    ]  # fmt: skip
    assert os.environ["HOME"] == "/var/lib/covey"
    assert os.environ["COVEY_NODE_STATE_DIR"] == "/elsewhere"
    assert os.environ["COVEY_NODE_SOCKET"] == "/run/covey-agent/agent.sock"


def test_the_places_are_those_of_the_service() -> None:
    service = (asagent.__file__.rpartition("/node/")[0]) + "/root/usr/lib/covey/agent"
    with open(service) as file:
        script = file.read()
    assert f"socket={asagent._PLACES['COVEY_NODE_SOCKET']}\n" in script
    assert f"HOME={asagent._HOME} COVEY_NODE_STATE_DIR={asagent._HOME} " in script
