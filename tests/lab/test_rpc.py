"""`agent deploy --engine rpc`: llama.cpp's own RPC between three nodes of a mesh; its faults."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import answer, wait

from agent.config import Config
from agent.demo.mesh import WORKERS, DemoMesh
from agent.models import bundled

NAME = "spread"
# Of llama.cpp's server, in the network of its process; nobody else may see it.
INSIDE_PORT = 50052


@pytest.fixture(scope="module")
def deployed(mesh: DemoMesh) -> Iterator[dict[str, Any]]:
    """Deploy over three nodes, and end it."""
    yield mesh.ask("alpha", "deploy", bundled.NAME, "--name", NAME, "--nodes", "3",
                   "--engine", "rpc")  # fmt: skip
    if NAME in {d["name"] for d in mesh.get("alpha", "/v1/deployments")["deployments"]}:
        mesh.agent("alpha", "undeploy", NAME)


def state(mesh: DemoMesh) -> dict[str, Any]:
    found = {d["name"]: d for d in mesh.get("alpha", "/v1/deployments")["deployments"]}
    described: dict[str, Any] = found[NAME]
    return described


def servers(mesh: DemoMesh, name: str) -> list[int]:
    """Return the ids of the processes on a machine that are RPC servers: in a network of theirs."""
    agent = mesh.get(name, "/v1/status")["pid"]
    own = os.readlink(f"/proc/{agent}/ns/net")
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(pid) for pid in children if os.readlink(f"/proc/{pid}/ns/net") != own]


def listeners(mesh: DemoMesh, name: str) -> set[tuple[str, int]]:
    """Return the TCP addresses and ports on which a machine listens."""
    said = mesh.machine(name).run(["ss", "-Htln"]).stdout
    found = [line.split()[3].rpartition(":") for line in said.splitlines()]
    return {(host, int(port)) for host, _, port in found}


def doors(mesh: DemoMesh) -> set[tuple[str, int]]:
    """Return where the head listens on its loopback, beside the agent's own pages."""
    return {at for at in listeners(mesh, "alpha") if at[0] == "127.0.0.1"} - {Config().http_listen}


def test_it_answers_through_the_gateway_as_the_whole_model(
    mesh: DemoMesh, deployed: dict[str, Any]
) -> None:
    assert deployed["phase"] == "ready"
    assert deployed["engine"] == "rpc"
    assert deployed["stages"][0]["name"] == "alpha"
    assert {stage["name"] for stage in deployed["stages"]} == set(WORKERS)
    assert len(deployed["stages"]) == 3, "a line, whose head has the first layers alone"
    mesh.wait_served({NAME})
    assert wait(lambda: answer(mesh, NAME)) == answer(mesh, "solo")


def test_it_listens_on_overlay_addresses_alone(mesh: DemoMesh, deployed: dict[str, Any]) -> None:
    for name in WORKERS:
        overlay = f"[{mesh.get(name, '/v1/status')['ipv6']}]"
        heard = listeners(mesh, name)
        engines = {(host, port) for host, port in heard if 7100 <= port < 7200}
        assert engines
        assert {host for host, _ in engines} == {overlay}
        assert INSIDE_PORT not in {port for _, port in heard}
        assert len(servers(mesh, name)) == (0 if name == "alpha" else 1)
    # The head's doors are on its loopback; beside them nothing is there that was not before.
    assert len(doors(mesh)) == 2
    # The firewall lets every member come to these ports; the server lets in nobody but the head.
    gamma = mesh.get("gamma", "/v1/status")["ipv6"]
    (server,) = servers(mesh, "gamma")
    found = mesh.machine("gamma").run(["ss", "-Htlnp"]).stdout
    (port,) = re.findall(rf":(\d+) .*pid={server},", found)
    probe = f"""
import socket
connection = socket.create_connection(({gamma!r}, {port}), 5)
try:
    connection.sendall(bytes([14]) + bytes(31))  # llama.cpp's hello
    print(connection.recv(64))
except ConnectionError:
    print(b"")
"""
    refused = mesh.machine("beta").run([sys.executable, "-c", probe])
    assert refused.stdout == "b''\n", refused.stderr


def test_a_killed_server_is_told_and_it_comes_back(
    mesh: DemoMesh, deployed: dict[str, Any]
) -> None:
    before = state(mesh)["epoch"]
    (victim,) = servers(mesh, "gamma")
    os.kill(victim, signal.SIGKILL)

    def broken() -> Any:
        found = state(mesh)
        return found["error"] if found["phase"] != "ready" else None

    assert "the RPC server on gamma" in wait(broken, 20)["message"]
    wait(lambda: state(mesh)["phase"] == "ready" and state(mesh)["epoch"] > before)
    assert wait(lambda: answer(mesh, NAME)) == answer(mesh, "solo")


def test_a_frozen_server_is_told_and_it_comes_back(
    mesh: DemoMesh, deployed: dict[str, Any]
) -> None:
    """Its agent ends the frozen process for good once the head says so."""
    before = state(mesh)["epoch"]
    (victim,) = servers(mesh, "beta")
    os.kill(victim, signal.SIGSTOP)
    wait(lambda: state(mesh)["phase"] == "ready" and state(mesh)["epoch"] > before, 120)
    wait(lambda: not Path(f"/proc/{victim}").exists(), 20)
    assert wait(lambda: answer(mesh, NAME)) == answer(mesh, "solo")


def test_undeploy_leaves_no_process_and_no_socket(mesh: DemoMesh, deployed: dict[str, Any]) -> None:
    mesh.agent("alpha", "undeploy", NAME)
    for name in WORKERS:
        wait(lambda name=name: not servers(mesh, name), 20)
    others = {d["name"]: d for d in mesh.get("alpha", "/v1/deployments")["deployments"]}
    assert NAME not in others
    wait(lambda: not doors(mesh), 20)
