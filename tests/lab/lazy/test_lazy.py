"""Members that nothing flows to are no WireGuard peers, and are connected when something does."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.demo.fleet import Fleet, wait_until
from agent.identity.keys import NodeId

ROOT = Path("/run/covey-lazy")
COUNT = 8
# Any port that an agent answers on its overlay address.
PORT = 7070
CONNECT = (
    "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 15).close()"
)


class Lazy(Fleet):
    """A small mesh that behaves as a large one does."""

    def environment(self, name: str) -> dict[str, str]:
        return super().environment(name) | {"COVEY_NETWORK_KEEP_PATHS": "0"}

    def route(self, name: str, other: str) -> str:
        return str(self.peers(name)[other].get("route"))

    def wireguard_peers(self, name: str) -> set[str]:
        command = ["wg", "show", f"covey-{name}", "peers"]
        done = self.machine(name).run(command, env=self.environment(name))
        return set(done.stdout.split())


@pytest.fixture(scope="module")
def fleet() -> Iterator[Lazy]:
    made = Lazy(ROOT, COUNT, lan=3, letter="z")
    made.join_all(2)
    for name in made.names:
        wait_until(f"{name} knows everyone", lambda n=name: len(made.peers(n)) == COUNT - 1)
    yield made


def asleep(fleet: Lazy) -> list[tuple[str, str]]:
    """Return the pairs of which neither end keeps a path to the other."""
    return [
        (one, two)
        for one, two in itertools.combinations(fleet.names, 2)
        if fleet.route(one, two) == fleet.route(two, one) == "asleep"
    ]


def key_of(fleet: Lazy, name: str) -> str:
    node = NodeId.parse(str(fleet.status(name)["node"]))
    return base64.b64encode(node.wireguard_public).decode()


def test_who_is_not_talked_to_is_no_peer_and_connected_by_the_first_packet(fleet: Lazy) -> None:
    wait_until("some keep no path to each other", lambda: bool(asleep(fleet)))
    one, two = asleep(fleet)[0]
    assert key_of(fleet, two) not in fleet.wireguard_peers(one)
    assert key_of(fleet, one) not in fleet.wireguard_peers(two)
    assert fleet.status(one)["peers"]["asleep"] >= 1
    address = str(fleet.status(two)["ipv6"])
    began = time.monotonic()
    done = subprocess.run(
        fleet.machine(one).command([sys.executable, "-c", CONNECT, address, str(PORT)]),
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    took_s = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    print(f"connected to who was asleep in {took_s:.2f} s")
    assert took_s < 10
    wait_until("there is a path", lambda: fleet.route(one, two) == "lan")
    assert key_of(fleet, two) in fleet.wireguard_peers(one)
    assert key_of(fleet, one) in fleet.wireguard_peers(two), "who is wanted takes part"


def test_a_ping_wakes_as_well(fleet: Lazy) -> None:
    pairs = asleep(fleet)
    if not pairs:
        pytest.fail(f"all keep paths to all of {COUNT}: the mesh is not lazy")
    one, two = pairs[0]
    (answer,) = json.loads(fleet.agent(one, "ping", two, "--count", "1", "--json"))["answers"]
    assert answer["rtt_ms"] is not None
    assert answer["route"] == "lan"
