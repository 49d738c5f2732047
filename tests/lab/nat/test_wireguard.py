"""Which outer ports wireguard-go has through each kind, with its default port inside."""

from __future__ import annotations

import base64
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from nat_sockets import come, udp

from agent.demo.natlab import NatLab, NatMachine, Site
from agent.demo.natrules import KINDS, Mapping

WIREGUARD, ONE = 51820, 7001
# The first word of a handshake's first message, and that message's length.
INITIATION, INITIATION_BYTES = b"\x01\0\0\0", 148
LIMIT_S = 20.0


@contextmanager
def wireguard(machine: NatMachine, number: int) -> Iterator[str]:
    """A wireguard-go on a machine, without peers; its interface's name."""
    # Its socket's path is of the interface's name, and shared by all namespaces.
    name = f"wgnat{number}"
    process = machine.spawn(["wireguard-go", "-f", name])
    try:
        deadline = time.monotonic() + LIMIT_S
        while not Path(f"/run/wireguard/{name}.sock").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        _do(machine, ["wg", "set", name, "private-key", "/dev/stdin", "listen-port",
                      str(WIREGUARD)], _key())  # fmt: skip
        _do(machine, ["ip", "link", "set", name, "up"])
        yield name
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def greet(machine: NatMachine, interface: str, places: list[str]) -> None:
    """Let it send a handshake to each place, again and again: nobody there answers."""
    for place in places:
        _do(machine, ["wg", "set", interface, "peer", _key(), "endpoint", place,
                      "persistent-keepalive", "1"])  # fmt: skip


def _do(machine: NatMachine, command: list[str], text: str = "") -> None:
    subprocess.run(machine.command(command), input=text, text=True, check=True, timeout=LIMIT_S)


def _key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def seen(rendezvous: tuple[Site, Site], machines: list[NatMachine]) -> list[tuple[int, int]]:
    """Let machines of one site greet both rendezvous in this order; return each one's two ports."""
    ports = []
    with ExitStack() as stack:
        sockets = [stack.enter_context(udp(site.machines[0], ONE)) for site in rendezvous]
        names = [stack.enter_context(wireguard(m, n)) for n, m in enumerate(machines)]
        known: set[int] = set()
        for machine, name in zip(machines, names, strict=True):
            greet(machine, name, [f"{site.address}:{ONE}" for site in rendezvous])
            pair = []
            for socket in sockets:
                # An earlier machine goes on greeting, from the port it is known by.
                while (packet := come(socket, LIMIT_S)) is not None:
                    assert packet.data[:4] == INITIATION
                    assert len(packet.data) == INITIATION_BYTES
                    if packet.source[1] not in known:
                        break
                assert packet is not None
                pair.append(packet.source[1])
            known.update(pair)
            ports.append((pair[0], pair[1]))
    return ports


@pytest.mark.parametrize("name", [kind.name for kind in KINDS.values() if kind.udp])
def test_the_port_that_a_kind_keeps(
    name: str, internet: NatLab, rendezvous: tuple[Site, Site]
) -> None:
    site = internet.sites[name]
    ((one, two),) = seen(rendezvous, site.machines[:1])
    if site.kind.mapping is Mapping.DIFFERS:
        assert len({one, two, WIREGUARD}) == 3
    else:
        assert (one, two) == (WIREGUARD, WIREGUARD)


def test_the_second_machine_of_a_lan_has_one_other_port(
    internet: NatLab, rendezvous: tuple[Site, Site]
) -> None:
    """Where both talk to the same rendezvous first, the second's port is lost, but one for all."""
    internet.forget(internet.sites["lan"])
    first, second = seen(rendezvous, internet.sites["lan"].machines)
    assert first == (WIREGUARD, WIREGUARD)
    assert second[0] == second[1] != WIREGUARD


def test_machines_behind_one_hard_nat_have_ports_of_their_own(
    internet: NatLab, rendezvous: tuple[Site, Site]
) -> None:
    office = internet.add("office", "hard", machines=2)
    first, second = seen(rendezvous, office.machines)
    assert len({*first, *second, WIREGUARD}) == 5
