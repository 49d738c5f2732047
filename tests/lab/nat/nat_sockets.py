"""Sockets of this process on the lab's machines, and small questions to ask of a NAT with them.

A socket belongs to the namespace in which it was made, whatever its process does later, so one
process can talk for all machines.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from agent.demo.netlab import Machine

Place = tuple[str, int]

_CLONE_NEWNET = 0x40000000
# In here a packet is across within a millisecond; busy neighbours on two cores may take more.
ARRIVES_S = 2.0
# How long is waited for what must not come, after what was sent later has come.
SETTLES_S = 0.03
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def on(machine: Machine | str) -> Iterator[None]:
    """Let what this thread does in the block happen on a machine, or in a namespace."""
    name = machine if isinstance(machine, str) else machine.name
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _enter(f"/run/netns/{name}")
        yield
    finally:
        _setns(home)
        os.close(home)


def _enter(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _setns(descriptor)
    finally:
        os.close(descriptor)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def udp(machine: Machine, port: int = 0, family: int = socket.AF_INET) -> Iterator[socket.socket]:
    """A UDP socket on a machine."""
    with on(machine):
        made = socket.socket(family, socket.SOCK_DGRAM)
    with made:
        made.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        made.settimeout(ARRIVES_S)
        yield made


@dataclass(frozen=True)
class Packet:
    """What came, and from where."""

    data: bytes
    source: Place


def send(source: socket.socket, place: Place, data: bytes) -> None:
    """Send; that nobody is there is not this sender's problem."""
    # An ICMP error for an earlier datagram is raised by the next call.
    with suppress(ConnectionRefusedError, PermissionError):
        source.sendto(data, place)
        return
    source.sendto(data, place)


def come(receiver: socket.socket, within_s: float = ARRIVES_S) -> Packet | None:
    """Return the next packet, or None when none comes in time."""
    deadline = time.monotonic() + within_s
    while (left := deadline - time.monotonic()) > 0:
        receiver.settimeout(left)
        try:
            data, source = receiver.recvfrom(2048)
        except TimeoutError:
            return None
        except ConnectionRefusedError:
            continue
        return Packet(data, (source[0], source[1]))
    return None


def all_come(receiver: socket.socket, last: bytes) -> list[Packet]:
    """Return all packets until `last`, and what comes shortly after it; fails when it is lost."""
    packets = []
    while (packet := come(receiver)) is not None:
        packets.append(packet)
        if packet.data == last:
            while (late := come(receiver, SETTLES_S)) is not None:
                packets.append(late)
            return packets
    raise AssertionError(f"{last!r} did not come, only {packets}")


def seen_as(source: socket.socket, witness: socket.socket, place: Place) -> Place:
    """Send from one socket to another, at `place`, and return where that sees it come from."""
    data = os.urandom(8)
    for _ in range(3):
        send(source, place, data)
        while (packet := come(witness, ARRIVES_S / 2)) is not None:
            if packet.data == data:
                return packet.source
    raise AssertionError(f"nothing from {source.getsockname()} came to {place}")


def crosses(source: socket.socket, witness: socket.socket, place: Place, within_s: float) -> bool:
    """Say whether a datagram to `place` comes to this socket."""
    data = os.urandom(8)
    send(source, place, data)
    deadline = time.monotonic() + within_s
    while (left := deadline - time.monotonic()) > 0:
        packet = come(witness, left)
        if packet is not None and packet.data == data:
            return True
    return False
