"""What a path carries counts: segments are as large as it lets through, and no larger for long.

anna ── internet ── bert     the links take 1500; then Bert's takes 1400, and nobody is told
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.demo.fleet import wait_until
from agent.demo.mesh import AgentLab
from agent.demo.natlab import INTERNET, NatLab, NatMachine, within

ROOT = Path("/run/covey-mtu")
PORT = 7150  # one of those that members may reach
# A path is searched after 2 s, and the largest size tried first.
FOUND_S = 15.0
# While packets flow what is held is tried each 5 s, else each 30 s; then it is judged by 4 tries,
# and searched for anew.
NOTICED_S, AWAITED_S = 20.0, 45.0
# Less IPv6 (40) and TCP with timestamps (32).
HEADERS = 72

_SERVE = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2])), family=socket.AF_INET6) as server:
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            count = 0
            while data := connection.recv(1 << 16):
                count += len(data)
            connection.sendall(str(count).encode())
"""
_SEND = """
import json, socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as connection:
    connection.settimeout(100)
    began, left = time.monotonic(), int(sys.argv[3])
    if len(sys.argv) > 4:
        print("begun", flush=True)
        sys.stdin.readline()
    while left:
        left -= connection.send(bytes(min(left, 1 << 16)))
    mss = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    connection.shutdown(socket.SHUT_WR)
    came = int(connection.recv(64))
    print(json.dumps({"came": came, "mss": mss, "s": time.monotonic() - began}), flush=True)
"""


class Machines:
    """The machines of a NatLab, as AgentLab wants them."""

    def __init__(self, lab: NatLab) -> None:
        self.machines: dict[str, NatMachine] = {
            machine.name: machine for site in lab.sites.values() for machine in site.machines
        }
        self.link_to_bert = lab.sites["bert"].link


@pytest.fixture(scope="module")
def pair() -> Iterator[AgentLab]:
    """Two agents that reach each other."""
    with NatLab() as lab:
        for name in ("anna", "bert"):
            (machine,) = lab.add(name, "public").machines
            machine.run(["ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"])
        yield from agents(lab)


def agents(lab: NatLab) -> Iterator[AgentLab]:
    made = AgentLab(ROOT, Machines(lab))  # type: ignore[arg-type]
    try:
        made.agent("anna", "mesh", "create", "mtu")
        made.agent("anna", "up")
        made.agent("bert", "join", made.ask("anna", "invite")["ticket"])
        for name in ("anna", "bert"):
            made.wait_connected(name, 1)
        yield made
    finally:
        for log in sorted(ROOT.glob("*/agent.log")):
            print(f"== {log}\n{log.read_text()[-6000:]}")


@pytest.fixture(scope="module")
def server(pair: AgentLab) -> Iterator[str]:
    """Bert's overlay address, on which somebody takes what comes."""
    address: str = pair.get("bert", "/v1/status")["ipv6"]
    process = pair.machine("bert").spawn(
        [sys.executable, "-c", _SERVE, address, str(PORT)], output=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield address
        process.terminate()


def mtu(pair: AgentLab, name: str, address: str) -> int:
    """Return the MTU of the route over the overlay to an address."""
    done = pair.machine(name).run(["ip", "-j", "route", "get", address])
    (route,) = json.loads(done.stdout)
    assert route["dev"] == f"covey-{name}"
    return int(route["metrics"][0]["mtu"])


def send(pair: AgentLab, address: str, size: int) -> dict[str, float]:
    """Send so many bytes from Anna, and return how it went."""
    command = [sys.executable, "-c", _SEND, address, str(PORT), str(size)]
    done = pair.machine("anna").run(command, timeout_s=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


def addresses(pair: AgentLab) -> dict[str, list[str]]:
    """Return the overlay addresses of the other one, by machine."""
    found = {}
    for name, other in (("anna", "bert"), ("bert", "anna")):
        facts = pair.get(other, "/v1/status")
        found[name] = [facts["ipv6"], facts["ipv4"]]
    return found


def wait_for_routes(pair: AgentLab, size: int, limit_s: float) -> None:
    """Wait until each sends packets of up to this size to both addresses of the other."""
    for name, others in addresses(pair).items():
        for other in others:
            wait_until(
                f"{name} sends {other} packets of {size} bytes",
                lambda name=name, other=other: mtu(pair, name, other) == size, limit_s,
            )  # fmt: skip


@pytest.mark.timeout(120)
def test_segments_are_as_large_as_the_link_takes(pair: AgentLab, server: str) -> None:
    wait_for_routes(pair, 1440, FOUND_S)
    done = send(pair, server, 4_000_000)
    assert done["came"] == 4_000_000
    assert done["mss"] == 1440 - HEADERS
    # Whoever has not been measured is sent what passes everywhere.
    assert mtu(pair, "anna", "10.77.200.200") == 1280
    interface = pair.machine("anna").run(["ip", "-o", "link", "show", "covey-anna"]).stdout
    assert re.search(r"mtu 1440 ", interface)


@pytest.mark.timeout(300)
def test_a_black_hole_is_left_and_the_transfer_goes_on(pair: AgentLab, server: str) -> None:
    command = [sys.executable, "-c", _SEND, server, str(PORT), "4000000", "wait"]
    sender = subprocess.Popen(
        pair.machine("anna").command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with sender:
        assert sender.stdin is not None and sender.stdout is not None
        assert sender.stdout.readline() == b"begun\n"
        router = within(INTERNET)
        for rule in (
            "add table inet silent",
            "add chain inet silent out { type filter hook output priority 0; }",
            "add rule inet silent out meta l4proto icmp drop",
        ):
            subprocess.run([*router, "nft", rule], check=True)
        link: str = pair.lab.link_to_bert  # type: ignore[union-attr]
        subprocess.run([*router, "ip", "link", "set", link, "mtu", "1400"], check=True)
        began = time.monotonic()
        sender.stdin.write(b"go\n")
        sender.stdin.flush()
        wait_until("the route is what fits", lambda: mtu(pair, "anna", server) == 1312, NOTICED_S)
        noticed_s = time.monotonic() - began
        done = json.loads(sender.stdout.readline())
    print(f"noticed and found anew after {noticed_s:.1f} s; the transfer took {done['s']:.1f} s")
    assert done["came"] == 4_000_000
    assert done["mss"] <= 1312 - HEADERS
    wait_for_routes(pair, 1312, AWAITED_S)
    assert send(pair, server, 4_000_000)["mss"] == 1312 - HEADERS


@pytest.mark.timeout(120)
def test_nothing_is_left(pair: AgentLab) -> None:
    """Routes go with the peer, and all of them with the agent."""

    def routes() -> str:
        machine = pair.machine("anna")
        return machine.run(["ip", "route"]).stdout + machine.run(["ip", "-6", "route"]).stdout

    other = pair.get("bert", "/v1/status")
    assert f"{other['ipv4']} dev covey-anna" in routes()
    assert f"{other['ipv6']} dev covey-anna" in routes()
    pair.agent("anna", "revoke", "bert")
    wait_until("the routes are gone", lambda: str(other["ipv6"]) not in routes(), 10)
    assert other["ipv4"] not in routes()
    assert "covey-anna" in routes()
    pair.agent("anna", "down")
    assert "covey-anna" not in routes()
