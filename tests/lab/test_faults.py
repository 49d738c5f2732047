"""Wrong input and killed processes: one clear line, a non-zero exit, and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from patience import answer, stage_of, wait

from agent.demo.mesh import DemoMesh
from agent.membership.ticket import Ticket
from agent.models import bundled

Done = subprocess.CompletedProcess[str]


def error_line(done: Done, code: int | None = None) -> str:
    """Return the one line of an error; fails for a success, several lines or a traceback."""
    assert done.returncode != 0
    if code is not None:
        assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in done.stderr
    return lines[0]


class Newcomer:
    """A node of its own on the gateway's machine, beside that machine's member."""

    def __init__(self, mesh: DemoMesh, name: str) -> None:
        self._mesh = mesh
        self.state = mesh.root / name

    def __call__(self, *arguments: str, prefix: Sequence[str] = ()) -> Done:
        """Run `agent ARGUMENTS` as this node."""
        environment = self._mesh.environment("door") | {
            "COVEY_NODE_STATE_DIR": str(self.state),
            "COVEY_NODE_NAME": "newcomer",
            "COVEY_NETWORK_INTERFACE": "covey-new",
            # Else it would find the member on its own machine, whatever address it is given.
            "COVEY_NETWORK_MDNS": "false",
        }
        command = [*prefix, sys.executable, "-m", "agent", *arguments]
        return self._mesh.machine("door").run(command, env=environment)


@pytest.fixture
def newcomer(mesh: DemoMesh, tmp_path: Path) -> Newcomer:
    """Return a node that has not joined."""
    return Newcomer(mesh, tmp_path.name)


@pytest.fixture(scope="module")
def joined(mesh: DemoMesh) -> Newcomer:
    """Return a node that has joined, with the issuer's address by hand, and is not up."""
    node = Newcomer(mesh, "joined")
    alpha = mesh.machine("alpha").address
    done = node("join", "--bootstrap", alpha, "--ticket", invite(mesh), "--no-up", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mesh"] == "demo"
    return node


def invite(mesh: DemoMesh, *options: str) -> str:
    ticket: str = mesh.ask("alpha", "invite", *options)["ticket"]
    return ticket


def deployments(mesh: DemoMesh) -> list[dict[str, Any]]:
    """Return what runs with alpha as head."""
    found: list[dict[str, Any]] = mesh.get("alpha", "/v1/deployments")["deployments"]
    return found


def test_a_ticket_that_is_none(newcomer: Newcomer) -> None:
    assert "not a ticket" in error_line(newcomer("join", "hello"), 6)


def test_a_garbled_ticket(mesh: DemoMesh, newcomer: Newcomer) -> None:
    ticket = invite(mesh)
    wrong = ticket[:60] + ("a" if ticket[60] != "a" else "b") + ticket[61:]
    assert "garbled" in error_line(newcomer("join", wrong), 6)


def test_an_expired_ticket(mesh: DemoMesh, newcomer: Newcomer) -> None:
    ticket = invite(mesh, "--ttl", "1s")
    time.sleep(2.1)
    assert "expired" in error_line(newcomer("join", ticket), 6)


def test_a_used_up_ticket(mesh: DemoMesh, newcomer: Newcomer, joined: Newcomer) -> None:
    ticket = invite(mesh)
    assert joined("join", ticket, "--no-up").returncode == 0
    assert "used up" in error_line(newcomer("join", ticket), 6)


def test_a_second_mesh(joined: Newcomer) -> None:
    assert "already in the mesh demo" in error_line(joined("mesh", "create", "other"), 4)


def test_a_ticket_with_a_wrong_secret(mesh: DemoMesh, newcomer: Newcomer) -> None:
    ticket = Ticket.parse(invite(mesh))
    wrong = msgspec.structs.replace(ticket, secret=bytes(16)).encode()
    assert "not known" in error_line(newcomer("join", wrong), 6)


def test_only_issuers_and_admins_let_others_in(mesh: DemoMesh) -> None:
    assert "neither issuer nor admin" in error_line(mesh.try_agent("beta", "invite"), 6)


def test_nobody_at_the_bootstrap_address(mesh: DemoMesh, newcomer: Newcomer) -> None:
    ticket = invite(mesh)
    line = error_line(newcomer("join", "--bootstrap", "198.18.1.1", "--ticket", ticket), 7)
    assert "198.18.1.1:4001" in line


def test_up_without_a_mesh(newcomer: Newcomer) -> None:
    assert "no mesh" in error_line(newcomer("up"), 6)


def test_a_second_up(mesh: DemoMesh) -> None:
    line = error_line(mesh.try_agent("beta", "up"), 4)
    assert "already runs" in line
    assert mesh.get("beta", "/v1/status")["name"] == "beta"


@pytest.mark.parametrize(
    ("protocol", "setting"),
    [("udp", "network.listen_port"), ("tcp", "network.control_port"),
     ("udp", "network.discovery_port")],
)  # fmt: skip
def test_a_port_in_use(mesh: DemoMesh, joined: Newcomer, protocol: str, setting: str) -> None:
    """The gateway's own agent holds the usual ports on this machine; take all but one elsewhere."""
    ports = {"network.listen_port": 52820, "network.control_port": 5001,
             "network.discovery_port": 5001}  # fmt: skip
    del ports[setting]
    flags = [part for key, port in ports.items() for part in ("--set", f"{key}={port}")]
    line = error_line(joined("up", *flags), 5)
    number = "51820" if setting == "network.listen_port" else "4001"
    assert f"port {number}" in line
    assert "in use" in line
    assert mesh.machine("door").run(["ip", "link", "show", "covey-new"]).returncode != 0


def test_no_cap_net_admin(joined: Newcomer) -> None:
    drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
    done = joined("up", "--set", "network.listen_port=52820", prefix=drop)
    assert "CAP_NET_ADMIN" in error_line(done, 5)


def test_a_key_file_that_others_can_read(joined: Newcomer) -> None:
    key = joined.state / "node.key"
    before = key.read_bytes()
    key.chmod(0o644)
    line = error_line(joined("up"), 4)
    assert str(key) in line
    assert "chmod 600" in line
    assert key.read_bytes() == before


def test_a_truncated_model(mesh: DemoMesh) -> None:
    file = mesh.root / "short.gguf"
    file.write_bytes(bundled.path().read_bytes()[:100_000])
    line = error_line(mesh.try_agent("alpha", "deploy", str(file)), 8)
    assert "short.gguf" in line
    assert "cut short" in line
    assert "short" not in {d["name"] for d in deployments(mesh)}


def test_a_model_that_is_not_there_and_a_wish_that_cannot_be(mesh: DemoMesh) -> None:
    line = error_line(mesh.try_agent("alpha", "deploy", bundled.NAME, "--nodes", "99"), 2)
    assert "this mesh has" in line
    assert "no model" in error_line(mesh.try_agent("alpha", "deploy", "/none.gguf"), 8)
    line = error_line(
        mesh.try_agent("alpha", "deploy", bundled.NAME, "--name", "x", "--context", "999999"), 2
    )
    assert "context" in line


def test_a_killed_engine_is_told_and_its_ring_comes_back(mesh: DemoMesh) -> None:
    """The others go on meanwhile."""
    before = {d["name"]: d["epoch"] for d in deployments(mesh)}
    os.kill(stage_of(mesh, "trio"), signal.SIGKILL)

    def broken() -> Any:
        found = {d["name"]: d for d in deployments(mesh)}["trio"]
        return found["error"] if found["phase"] != "ready" else None

    error = wait(broken, 20)
    assert "stage" in error["message"]
    assert answer(mesh, "solo")

    def back() -> bool:
        found = {d["name"]: d for d in deployments(mesh)}["trio"]
        return found["phase"] == "ready" and found["epoch"] > before["trio"]

    wait(back)
    wait(lambda: answer(mesh, "trio"))


def test_a_killed_agent_comes_back_with_its_address_and_deployments(mesh: DemoMesh) -> None:
    before = mesh.get("alpha", "/v1/status")
    names = {d["name"] for d in deployments(mesh)}
    os.kill(before["pid"], signal.SIGKILL)
    wait(lambda: not Path(f"/proc/{before['pid']}").exists(), 10)
    assert "no agent is running" in error_line(mesh.try_agent("alpha", "status"), 10)
    mesh.agent("alpha", "up")
    after = mesh.get("alpha", "/v1/status")
    assert (after["ipv6"], after["ipv4"], after["node"]) == (
        before["ipv6"], before["ipv4"], before["node"],
    )  # fmt: skip
    assert after["pid"] != before["pid"]
    assert {d["name"] for d in deployments(mesh)} == names
    mesh.wait_connected("alpha")
    # Members of other tests that are off may come first for some of them: nobody waits for those.
    for name in names:
        wait(lambda name=name: answer(mesh, name), 30)


def test_restart_puts_a_new_agent_in_its_place(mesh: DemoMesh) -> None:
    before = mesh.get("gamma", "/v1/status")
    said = json.loads(mesh.agent("gamma", "restart", "--json"))
    after = mesh.get("gamma", "/v1/status")
    assert not Path(f"/proc/{before['pid']}").exists()
    assert said["pid"] == after["pid"] != before["pid"]
    assert (after["ipv6"], after["node"]) == (before["ipv6"], before["node"])


def test_restart_leaves_an_agent_that_it_cannot_replace(mesh: DemoMesh, joined: Newcomer) -> None:
    assert "no agent is running" in error_line(joined("restart"), 10)
    before = mesh.get("gamma", "/v1/status")["pid"]
    line = error_line(mesh.try_agent("gamma", "restart", "--set", "network.mtu=x"), 3)
    assert "network.mtu" in line
    assert mesh.get("gamma", "/v1/status")["pid"] == before


def test_restart_says_that_the_old_agent_has_ended(mesh: DemoMesh) -> None:
    busy = mesh.machine("gamma").spawn(
        [sys.executable, "-c", "import socket, time; s = socket.socket(socket.AF_INET,"
         " socket.SOCK_DGRAM); s.bind(('', 52999)); time.sleep(60)"],
    )  # fmt: skip
    try:
        time.sleep(0.5)
        done = mesh.try_agent("gamma", "restart", "--set", "network.listen_port=52999")
        line = error_line(done, 5)
        assert "52999" in line
        assert "`agent up` starts one" in line
        assert "no agent is running" in error_line(mesh.try_agent("gamma", "status"), 10)
    finally:
        busy.kill()
        busy.wait()
        mesh.agent("gamma", "up")


def test_down_leaves_no_interface_process_or_socket(mesh: DemoMesh) -> None:
    gamma = mesh.machine("gamma")
    pid = mesh.get("gamma", "/v1/status")["pid"]
    mesh.agent("gamma", "down")
    assert not Path(f"/proc/{pid}").exists()
    assert not mesh.socket("gamma").exists()
    assert gamma.run(["ip", "link", "show", "covey-gamma"]).returncode != 0
    left = gamma.run(["ip", "-br", "address"]).stdout.splitlines()
    assert {line.split()[0].partition("@")[0] for line in left} == {"lo", "eth0"}
    assert gamma.run(["ss", "-Htuln"]).stdout.strip() == ""
    mesh.agent("gamma", "up")
