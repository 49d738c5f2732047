"""Probes from the members' namespace to this node: what of TCP, UDP and ping gets through."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from acl_wire import Services, Wire

from agent.acl.ports import Protocol

# Everything is on this machine, so an answer takes a millisecond; silence is a packet dropped.
PATIENCE_S = 2.0
_ICMP_ECHO, _ICMP_REPLY, _ICMPV6_ECHO, _ICMPV6_REPLY = 8, 0, 128, 129


@dataclass(frozen=True)
class Probe:
    """One attempt, from an address of the members' namespace to one of this node."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: Protocol
    port: int


def reached(wire: Wire, services: Services, probes: Iterable[Probe]) -> dict[Probe, bool]:
    """Make all attempts; say of each whether it got through. UDP first: it is over in no time."""
    with ExitStack() as stack:
        made = {probe: stack.enter_context(_socket(wire, probe)) for probe in probes}
        by = {p: [probe for probe in made if probe.protocol == p] for p in ("tcp", "udp", "icmp")}
        sent = {str(n).encode(): probe for n, probe in enumerate(by["udp"])}
        for payload, probe in sent.items():
            made[probe].sendto(payload, (str(probe.destination), probe.port))
        for probe in by["icmp"]:
            made[probe].sendto(_echo(probe), (str(probe.destination), 0))
        found = _connected({probe: made[probe] for probe in by["tcp"]})
        _accept_all(services)
        received = _received(services)
        found |= {probe: payload in received for payload, probe in sent.items()}
        return found | {probe: _replied(made[probe], probe) for probe in by["icmp"]}


def _socket(wire: Wire, probe: Probe) -> socket.socket:
    family = socket.AF_INET6 if probe.source.version == 6 else socket.AF_INET
    match probe.protocol:
        case "tcp":
            made = wire.socket(family, socket.SOCK_STREAM)
        case "udp":
            made = wire.socket(family, socket.SOCK_DGRAM)
        case "icmp":
            number = socket.IPPROTO_ICMPV6 if probe.source.version == 6 else socket.IPPROTO_ICMP
            made = wire.socket(family, socket.SOCK_RAW, number)
    made.bind((str(probe.source), 0))
    made.setblocking(False)
    return made


def _connected(sockets: dict[Probe, socket.socket]) -> dict[Probe, bool]:
    """Connect all; those that neither succeed nor fail in time were dropped."""
    found = dict.fromkeys(sockets, False)
    with selectors.DefaultSelector() as selector:
        for probe, made in sockets.items():
            code = made.connect_ex((str(probe.destination), probe.port))
            assert code in (0, errno.EINPROGRESS), probe
            selector.register(made, selectors.EVENT_WRITE, probe)
        deadline = time.monotonic() + PATIENCE_S
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(deadline - time.monotonic()):
                error = sockets[key.data].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                assert error in (0, errno.ECONNREFUSED), key.data
                found[key.data] = error == 0
                selector.unregister(key.fileobj)
    return found


def _accept_all(services: Services) -> None:
    for listener in services.tcp.values():
        while True:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                break


def _received(services: Services) -> set[bytes]:
    found = set()
    for waiting in services.udp.values():
        while True:
            try:
                found.add(waiting.recv(64))
            except BlockingIOError:
                break
    return found


def _replied(made: socket.socket, probe: Probe) -> bool:
    """Say whether an echo reply came; raw sockets also get the refusals."""
    wanted = _ICMPV6_REPLY if probe.source.version == 6 else _ICMP_REPLY
    while True:
        try:
            packet = made.recv(2048)
        except OSError as error:
            assert error.errno in (errno.EAGAIN, errno.EACCES, errno.EHOSTUNREACH), error
            if error.errno == errno.EAGAIN:
                return False
            continue
        body = packet if probe.source.version == 6 else packet[(packet[0] & 15) * 4 :]
        if body[0] == wanted:
            return True


def _echo(probe: Probe) -> bytes:
    kind = _ICMPV6_ECHO if probe.source.version == 6 else _ICMP_ECHO
    words = (kind << 8, 0, 77, 1)
    checksum = 0
    if probe.source.version == 4:  # the kernel does it for ICMPv6
        total = sum(words)
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return struct.pack("!HHHH", words[0], checksum, *words[2:])
