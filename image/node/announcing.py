"""Tells the LAN how a machine is that is not set up yet, by multicast DNS. A shell.

A thread of `watching.py`, which says what to tell in the file `setup` in /run/covey: a state, then
lines of what is wrong; nothing is told while it is empty. Over IPv4, on each port that has such an
address. What is told is what the screen shows, and holds no secret.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from agent.lan.dns import GROUP_IPV4, PORT
from image.node import hostfiles, lans, setupdns
from image.node.setupdns import Setup

SETUP = "setup"
# How often it looks for ports and for news.
_LOOK_INTERVAL_S = 3.0
# Caches forget after two minutes.
_ANNOUNCE_INTERVAL_S = 60.0
# RFC 6762 §6: a record is multicast at most once a second; and nobody uses us against a third one.
_ANSWER_INTERVAL_S = 1.0
_REPLIES_PER_LOOK = 50
_PACKET_BYTES = 2048
# RFC 6762 §11: packets come with 255, which no router passes on.
_HOPS = 255
# struct ip_mreqn and in_pktinfo begin with, or end with, the interface's index.
_MREQN = struct.Struct("=4s4si")
_PKTINFO = struct.Struct("=i4s4s")
# linux/in.h; not in all versions of the socket module.
_IP_PKTINFO, _IP_MULTICAST_ALL = 8, 49


@dataclass(frozen=True)
class Port:
    """A port of this machine, by its index, and its first address."""

    index: int
    address: IPv4Address


def begin(run: Path) -> None:
    """Start the thread; `run` is the folder of the file. It ends with the process."""
    threading.Thread(target=_for_ever, args=(run,), name="announcing", daemon=True).start()


def told(run: Path) -> Setup | None:
    """Return what is to be told now, None for nothing."""
    try:
        name = (run / hostfiles.HOSTNAME).read_text().strip()
        state, *lines = (run / SETUP).read_text().splitlines()
    except (OSError, ValueError):
        return None
    return Setup(name, state, tuple(lines))


def ports() -> list[Port]:
    """Return this machine's ports with an address on a LAN."""
    found = {
        one.index: one.ip for one in reversed(lans.addresses()) if isinstance(one.ip, IPv4Address)
    }
    return [Port(index, address) for index, address in sorted(found.items())]


class Announcer:
    """A socket in the group on each of some ports, and what it tells there."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _HOPS)
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            self._socket.bind((GROUP_IPV4, PORT))
        except OSError:
            self._socket.close()
            raise
        self._ports: dict[int, Port] = {}
        self._setup: Setup | None = None
        self._announced: dict[int, float] = {}
        self._replies = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def set(self, setup: Setup | None, found: list[Port], now: float) -> None:
        """Tell this from now on, on these ports; at once where anything of it is new."""
        if self._setup and (setup is None or setup.name != self._setup.name):
            for port in self._ports.values():
                self._send(port, setupdns.answer(self._setup, port.address, ttl_s=0))
        ports_now = {port.index: port for port in found}
        for index in self._ports.keys() - ports_now.keys():
            self._announced.pop(index, None)
        for port in found:
            known = self._ports.get(port.index)
            if known is None:
                # It may be a member already, of a port that went and came.
                with contextlib.suppress(OSError):
                    self._option(
                        socket.IP_ADD_MEMBERSHIP,
                        _MREQN.pack(socket.inet_aton(GROUP_IPV4), bytes(4), port.index),
                    )
            if known != port or setup != self._setup:
                self._announced.pop(port.index, None)
        self._ports, self._setup, self._replies = ports_now, setup, 0
        for port in found if setup else ():
            if now - self._announced.get(port.index, float("-inf")) >= _ANNOUNCE_INTERVAL_S:
                self._announce(port, now)

    def serve(self, until: float) -> None:
        """Answer questions until a time of the steady clock."""
        while (left := until - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                with contextlib.suppress(OSError):
                    self._take()

    def _take(self) -> None:
        packet, extra, _, sender = self._socket.recvmsg(_PACKET_BYTES, 256)
        port = self._ports.get(_arrived(extra))
        asked = setupdns.read(packet, self._setup) if self._setup and port else None
        if not (asked and port and self._setup):
            return
        now, legacy = time.monotonic(), sender[1] != PORT
        if legacy or asked.unicast:
            self._replies += 1
            if self._replies <= _REPLIES_PER_LOOK:
                to = asked if legacy else None
                self._socket.sendto(setupdns.answer(self._setup, port.address, to=to), sender)
        elif now - self._announced.get(port.index, float("-inf")) >= _ANSWER_INTERVAL_S:
            self._announce(port, now)

    def _announce(self, port: Port, now: float) -> None:
        if self._setup:
            self._announced[port.index] = now
            self._send(port, setupdns.answer(self._setup, port.address))

    def _send(self, port: Port, packet: bytes) -> None:
        # The port may be gone by now.
        with contextlib.suppress(OSError):
            # With the source named: by itself the kernel may take another port's address.
            source = _MREQN.pack(bytes(4), port.address.packed, port.index)
            self._option(socket.IP_MULTICAST_IF, source)
            self._socket.sendto(packet, (GROUP_IPV4, PORT))

    def _option(self, option: int, value: bytes) -> None:
        self._socket.setsockopt(socket.IPPROTO_IP, option, value)


def _arrived(extra: list[tuple[int, int, Any]]) -> int:
    """Return the index of the port that a packet came in by, 0 if it is not said."""
    for level, kind, data in extra:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            return int(_PKTINFO.unpack_from(data)[0])
    return 0


def _for_ever(run: Path) -> None:
    while True:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            announcer = Announcer()
            try:
                while True:
                    now = time.monotonic()
                    announcer.set(told(run), ports(), now)
                    announcer.serve(now + _LOOK_INTERVAL_S)
            finally:
                announcer.close()
        time.sleep(_LOOK_INTERVAL_S)
