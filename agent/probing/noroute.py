"""Tells this machine's TCP that a member cannot be reached now, so that it does not back off.

TCP doubles its pause after each repetition that nobody answers, so a path that is back after 3.1 s
makes a stream wait 6.2 s. RFC 6069 has it take a doubling back when a router says that it has no
route for the repetition; Linux does so. Here the overlay is that router: while a member has no
path, each segment to it is answered. Connections that are being opened are not told: they would
end, and a path may be found in a moment. `answer` is a core, `NoRoute` its shell.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from agent.paths.allowance import Allowance
from agent.probing import bpf, sockets
from agent.probing.header import checksum

# A stream repeats five times a second at most; what more there are wait for their next turn.
ANSWERS_PER_S, ANSWERS_BURST = 200.0, 200.0
HEAD_BYTES = 80
"""What of a packet is needed: both headers, IPv4's with all options."""
_TCP = 6
_IPV6_BYTES, _IPV4_BYTES_MIN, _TCP_BYTES = 40, 20, 20
_FLAGS_AT, _SYN, _RST, _ACK = 13, 0x02, 0x04, 0x10
# RFC 4443 §3.1: destination unreachable, no route. RFC 792: destination unreachable, host.
_HEADER = struct.Struct("!BBHI")
_IPV6_NO_ROUTE, _IPV4_NO_HOST = (1, 0), (3, 1)


class Answer(NamedTuple):
    """An ICMP message to the address that sent the packet."""

    to: IPv4Address | IPv6Address
    message: bytes


def answer(head: bytes) -> Answer | None:
    """Return what says that there is no route for a packet, by its first HEAD_BYTES.

    None unless it is a segment of a TCP connection that stands. The kernel sums ICMPv6 itself.
    """
    if len(head) >= _IPV6_BYTES + _TCP_BYTES and head[0] >> 4 == 6 and head[6] == _TCP:
        if not _stands(head[_IPV6_BYTES:]):
            return None
        message = _HEADER.pack(*_IPV6_NO_ROUTE, 0, 0) + head
        return Answer(IPv6Address(head[8:24]), message)
    if len(head) >= _IPV4_BYTES_MIN + _TCP_BYTES and head[0] >> 4 == 4 and head[9] == _TCP:
        length = (head[0] & 15) * 4
        if len(head) < length + _TCP_BYTES or not _stands(head[length:]):
            return None
        summed = checksum(_HEADER.pack(*_IPV4_NO_HOST, 0, 0) + head)
        message = _HEADER.pack(*_IPV4_NO_HOST, summed, 0) + head
        return Answer(IPv4Address(head[12:16]), message)
    return None


def _stands(segment: bytes) -> bool:
    return segment[_FLAGS_AT] & (_SYN | _RST | _ACK) == _ACK


class NoRoute:
    """Answers segments on this machine."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}
        self._allowance = Allowance(ANSWERS_PER_S, ANSWERS_BURST)

    def say(self, head: bytes, now: float) -> None:
        """Answer the packet that begins so, if that helps; errors are no matter."""
        said = answer(head)
        if said is None or not self._allowance.take(now):
            return
        with contextlib.suppress(OSError):
            self._socket(said.to.version).sendto(said.message, (str(said.to), 0))

    def stop(self) -> None:
        """Close what was opened."""
        for one in self._sockets.values():
            one.close()
        self._sockets.clear()

    def _socket(self, version: int) -> socket.socket:
        found = self._sockets.get(version)
        if found is None:
            family, protocol = (
                (socket.AF_INET6, socket.IPPROTO_ICMPV6)
                if version == 6
                else (socket.AF_INET, socket.IPPROTO_ICMP)
            )
            found = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
            sockets.attach(found, bpf.NOTHING)
            self._sockets[version] = found
        return found
