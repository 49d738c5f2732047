"""compose.yaml, from nothing to an answer; and what becomes of it when things end."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from engine import Engine, eventually
from openai import OpenAI

PORT = 18088
URL = f"http://127.0.0.1:{PORT}"
NODES = ("node-1", "node-2", "node-3")
QUESTION = "What is the capital of France?"


def name(service: str) -> str:
    return f"covey_{service}_1"


def healthy() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/health", timeout=10) as answer:
            return bool(json.load(answer)["models"] == ["covey-mini"])
    except (urllib.error.URLError, OSError, ValueError):
        return False


def ask() -> str:
    client = OpenAI(base_url=f"{URL}/v1", api_key="none", timeout=120, max_retries=0)
    answer = client.chat.completions.create(
        model="covey-mini", messages=[{"role": "user", "content": QUESTION}], temperature=0,
        max_tokens=40,
    )  # fmt: skip
    return answer.choices[0].message.content or ""


def up(engine: Engine) -> None:
    engine.compose("up", "-d", COVEY_PORT=str(PORT))
    eventually(healthy)


@pytest.fixture(scope="module")
def running(engine: Engine) -> Iterator[Engine]:
    up(engine)
    yield engine
    engine.compose("down", "-v")


def members(engine: Engine) -> dict[str, dict[str, Any]]:
    found = json.loads(engine.done("exec", name("node-2"), "agent", "members", "--json"))
    return {one["name"]: one for one in found["members"]}


def test_it_ends_in_an_endpoint_that_answers(running: Engine) -> None:
    assert ask().strip()
    placed = json.loads(running.done("exec", name("node-1"), "agent", "ps", "--json"))
    [deployment] = placed["deployments"]
    # All three have a part of the model.
    assert {stage["name"] for stage in deployment["stages"]} == set(NODES)
    assert set(members(running)) == set(NODES)


def test_nothing_of_a_ticket_is_left(running: Engine) -> None:
    gathered = eventually(
        lambda: (found := running.inspect(name("gather"))["State"])["Status"] == "exited" and found
    )
    assert gathered["ExitCode"] == 0
    for node in ("node-2", "node-3"):
        assert running.done("exec", name(node), "ls", "-A", "/tickets") == ""
    [volume] = json.loads(running.done("volume", "inspect", "covey_tickets"))
    assert volume["Options"]["type"] == "tmpfs"
    for container in (*NODES, "gather", "gateway"):
        said = running.podman("logs", name(container))
        assert "covey1" not in said.stdout + said.stderr


def test_they_have_no_more_rights_than_they_need(running: Engine) -> None:
    for service in (*NODES, "gateway", "place-1"):
        found = running.inspect(name(service))
        host = found["HostConfig"]
        assert not host["Privileged"]
        assert host["ReadonlyRootfs"]
        assert "no-new-privileges" in host["SecurityOpt"]
        given = {word.removeprefix("CAP_") for word in found["EffectiveCaps"] or ()}
        assert given == ({"NET_ADMIN", "NET_RAW"} if service in NODES else set())
    status = running.done("exec", name("gateway"), "cat", "/proc/1/status")
    facts = dict(line.split(":", 1) for line in status.splitlines())
    assert facts["Uid"].split() == ["65532"] * 4
    assert int(facts["CapBnd"], 16) == 0


def test_the_gateway_reads_of_the_agent_and_changes_nothing(running: Engine) -> None:
    script = (
        "import socket; s = socket.socket(socket.AF_UNIX);"
        "s.connect('/run/covey-gateway/agent.sock');"
        "s.sendall(b'{} HTTP/1.0\\r\\nHost: a\\r\\n\\r\\n'); print(s.recv(99).split()[1].decode())"
    )
    answers = [
        running.done("exec", name("gateway"), "python3", "-c", script.replace("{}", asked)).strip()
        for asked in ("GET /v1/replicas", "POST /v1/invite", "POST /v1/down")
    ]
    assert answers == ["200", "403", "403"]


def test_the_probes_tell_who_answers(running: Engine) -> None:
    for service in (*NODES, "gateway"):
        running.done("healthcheck", "run", name(service))
    dead = running.podman("exec", name("place-1"), "python3", "-m", "image.containers.alive")
    assert dead.returncode == 1
    assert dead.stdout == "no agent answers on /run/covey/agent.sock\n"


def test_a_node_that_is_killed_comes_back(running: Engine) -> None:
    before = members(running)["node-1"]["node"]
    # The head's node, in the network of which the gateway is.
    os.kill(running.inspect(name("node-1"))["State"]["Pid"], signal.SIGKILL)
    eventually(lambda: not healthy(), 60)
    eventually(healthy)
    assert ask().strip()
    assert members(running)["node-1"]["node"] == before


def test_it_is_the_same_mesh_after_down_and_up(running: Engine) -> None:
    before = {one: facts["node"] for one, facts in members(running).items()}
    running.compose("down")
    up(running)
    assert ask().strip()
    assert {one: facts["node"] for one, facts in members(running).items()} == before
