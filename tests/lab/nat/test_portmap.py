"""Routers that map ports when asked answer as routers do: UPnP by miniupnpc, the others by hand."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

import miniupnpc
import pytest
from nat_sockets import ARRIVES_S, come, crosses, on, seen_as, send, udp

from agent.demo.natlab import NatLab, Site
from agent.demo.netlab import Machine

PMP_PORT = 5351
INSIDE = 51830
LIFETIME_S = 600
ONE = 7001
NEVER_S = 0.15
_UDP = 17
_V4_MAPPED = b"\0" * 10 + b"\xff\xff"

Rendezvous = tuple[Site, Site]
Mapper = Callable[[Machine, int], tuple[str, int, int]]


def ask(machine: Machine, request: bytes) -> bytes | None:
    """Send a request to the router's port for NAT-PMP and PCP; return its answer."""
    with udp(machine) as client:
        for _ in range(2):
            send(client, (machine.gateway, PMP_PORT), request)
            packet = come(client, ARRIVES_S / 2)
            if packet is not None:
                return packet.data
    return None


def pmp(machine: Machine, outer: int) -> tuple[str, int, int]:
    """Ask by NAT-PMP (RFC 6886) for a port; return the router's address, the port and its time."""
    said = ask(machine, bytes([0, 0]))
    given = ask(machine, struct.pack("!BBHHHI", 0, 1, 0, INSIDE, outer, LIFETIME_S))
    assert said is not None
    assert given is not None
    assert struct.unpack("!BBH", said[:4]) == (0, 128, 0)
    version, operation, result, _, inner, port, lifetime = struct.unpack("!BBHIHHI", given)
    assert (version, operation, result, inner) == (0, 129, 0, INSIDE)
    return socket.inet_ntoa(said[8:12]), port, lifetime


def pcp(machine: Machine, outer: int) -> tuple[str, int, int]:
    """Ask by PCP (RFC 6887, MAP) for a port; return the router's address, the port and its time."""
    nonce = os.urandom(12)
    client = _V4_MAPPED + socket.inet_aton(machine.address)
    header = struct.pack("!BBHI16s", 2, 1, 0, LIFETIME_S, client)
    body = struct.pack("!12sB3xHH16s", nonce, _UDP, INSIDE, outer, _V4_MAPPED + bytes(4))
    said = ask(machine, header + body)
    assert said is not None
    version, operation, result, lifetime = struct.unpack("!BBxBI", said[:8])
    assert (version, operation, result) == (2, 129, 0)
    back, protocol, inner, port, address = struct.unpack("!12sB3xHH16s", said[24:60])
    assert (back, protocol, inner) == (nonce, _UDP, INSIDE)
    return socket.inet_ntoa(address[12:]), port, lifetime


def upnp(machine: Machine, outer: int) -> tuple[str, int, int]:
    """Ask by UPnP for a port; return the router's address, the port and its time."""
    with on(machine):
        client = miniupnpc.UPnP()
        client.discoverdelay = 100
        assert client.discover() > 0
        client.selectigd()
        assert client.lanaddr == machine.address
        assert client.addportmapping(outer, "UDP", machine.address, INSIDE, "covey", "", LIFETIME_S)
        found = client.getspecificportmapping(outer, "UDP")
        assert found[:2] == (machine.address, INSIDE)
        return client.externalipaddress(), outer, found[4]


@pytest.mark.parametrize(
    ("name", "protocol", "outer"),
    [
        ("upnp", upnp, 41001),
        ("upnp", pmp, 41002),
        ("upnp", pcp, 41003),
        ("hard-pmp", pmp, 41004),
        ("hard-pmp", pcp, 41005),
    ],
)
def test_a_mapped_port_is_open_to_strangers(
    name: str, protocol: Mapper, outer: int, internet: NatLab, rendezvous: Rendezvous
) -> None:
    site, (first, _) = internet.sites[name], rendezvous
    machine = site.machines[0]
    with udp(machine, INSIDE) as inside, udp(first.machines[0]) as stranger:
        assert not crosses(stranger, inside, (site.address, outer), NEVER_S)
        address, port, lifetime = protocol(machine, outer)
        assert (address, port) == (site.address, outer)
        assert LIFETIME_S - 5 <= lifetime <= LIFETIME_S
        assert crosses(stranger, inside, (site.address, outer), ARRIVES_S)
        # The stranger is answered from the port it wrote to, also by a hard NAT.
        assert seen_as(inside, stranger, (first.address, stranger.getsockname()[1])) == (
            site.address,
            outer,
        )


def test_a_hard_nat_maps_only_inward(internet: NatLab, rendezvous: Rendezvous) -> None:
    """What the inside begins itself leaves from a port drawn anew, whatever is mapped."""
    site, (first, second) = internet.sites["hard-pmp"], rendezvous
    _, outer, _ = pmp(site.machines[0], 41006)
    with (
        udp(site.machines[0], INSIDE) as inside,
        udp(first.machines[0], ONE) as one,
        udp(second.machines[0], ONE) as two,
    ):
        ports = {
            seen_as(inside, one, (first.address, ONE))[1],
            seen_as(inside, two, (second.address, ONE))[1],
        }
    assert len(ports) == 2
    assert outer not in ports


def test_a_second_way_in_shows_a_port_that_nobody_has(
    internet: NatLab, rendezvous: Rendezvous
) -> None:
    """Linux keeps the flows of one pair of sockets apart by giving the later one a made-up source.

    So who probes a mapped port and a punched one from one socket is seen with two ports, of which
    one is true; an answer to either finds it.
    """
    site, (first, _) = internet.sites["upnp"], rendezvous
    _, outer, _ = pmp(site.machines[0], 41007)
    with udp(site.machines[0], INSIDE) as inside, udp(first.machines[0], 7003) as one:
        punched = seen_as(inside, one, (first.address, 7003))
        assert seen_as(one, inside, punched) == (first.address, 7003)
        made_up = seen_as(one, inside, (site.address, outer))
        assert made_up[0] == first.address
        assert made_up[1] != 7003
        assert seen_as(inside, one, made_up) == (site.address, outer)


def test_a_router_with_nat_pmp_alone_does_not_speak_upnp(internet: NatLab) -> None:
    search = (
        b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\n'
        b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    )
    answers = {}
    for name in ("upnp", "hard-pmp"):
        with udp(internet.sites[name].machines[0]) as client:
            send(client, ("239.255.255.250", 1900), search)
            answers[name] = come(client, ARRIVES_S if name == "upnp" else NEVER_S) is not None
    assert answers == {"upnp": True, "hard-pmp": False}


def test_a_mapping_survives_another_address(internet: NatLab, rendezvous: Rendezvous) -> None:
    """And the router tells the new one to who asks."""
    site, (first, _) = internet.sites["upnp"], rendezvous
    machine = site.machines[0]
    before, outer, _ = pmp(machine, 41008)
    after = internet.change_address(site)
    assert before != after
    with udp(machine, INSIDE) as inside, udp(first.machines[0]) as stranger:
        assert crosses(stranger, inside, (after, outer), ARRIVES_S)
        assert not crosses(stranger, inside, (before, outer), NEVER_S)
    assert pmp(machine, 41008)[0] == after
