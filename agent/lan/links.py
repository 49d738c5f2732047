"""The sockets of one interface: the multicast DNS group, and a port of our own to ask from.

A shell. Used by `watch.py`; what comes goes to its `Received` callback. A fault of a socket (the
network is down, an address is not ready yet) is a line in the debug log, since all that is sent is
sent again.

For each address family two sockets:

* the listener is bound to the group's address and port on this interface alone, so it never takes a
  packet that was sent to this machine itself: not from outside the link, nor one that is meant for
  another mDNS program here (avahi, systemd-resolved), with which it shares the port;
* the asker has a port of its own. Answers to it come straight and at once, also where another
  program does not share port 5353; but a firewall may let only multicast pass, so both ask.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

from agent.lan import dns
from agent.lan.interfaces import LanInterface

_log = logging.getLogger(__name__)

# linux/in.h; not in Python's socket module. Off: only groups that this very socket has joined.
_IP_MULTICAST_ALL = 49
# struct ip_mreqn: group, address, interface index.
_MREQN = struct.Struct("=4s4si")
# struct ipv6_mreq: group, interface index.
_MREQ6 = struct.Struct("=16sI")
# RFC 6762 §11: packets come with 255, which no router passes on.
_HOPS = 255

# A packet and the address of who sent it, as the socket gives it.
Received = Callable[["Link", bytes, tuple[Any, ...]], None]


class Link:
    """One interface in one address family, opened."""

    def __init__(self, interface: LanInterface, family: socket.AddressFamily) -> None:
        self.interface = interface
        self.family = family
        self.answered_at = float("-inf")  # when something was multicast here last (monotonic)
        self.fault: OSError | None = None  # why it cannot listen, if it cannot
        self._listener: asyncio.DatagramTransport | None = None
        self._asker: asyncio.DatagramTransport | None = None

    async def open(self, received: Received) -> None:
        """Open both sockets. Raises OSError when not even one can be opened."""
        loop = asyncio.get_running_loop()
        try:
            self._listener = await self._endpoint(loop, received, listening=True)
        except OSError as error:
            self.fault = error
        try:
            self._asker = await self._endpoint(loop, received, listening=False)
        except OSError:
            if self._listener is None:
                raise
        except BaseException:
            self.close()
            raise

    @property
    def listening(self) -> bool:
        """Whether it hears what is multicast, and can announce."""
        return self._listener is not None

    def ask(self, *, directly: bool) -> None:
        """Ask who is there; `directly`: for answers to a port of our own."""
        self._send(self._asker if directly else self._listener, dns.question(), self._group)

    def multicast(self, packet: bytes) -> None:
        """Tell the whole link."""
        self._send(self._listener, packet, self._group)

    def reply(self, packet: bytes, to: tuple[Any, ...]) -> None:
        """Send to one that asked."""
        self._send(self._listener, packet, to)

    def close(self) -> None:
        """Close both sockets; what was sent is on its way. May be called twice."""
        for transport in (self._listener, self._asker):
            if transport is not None:
                transport.close()
        self._listener = self._asker = None

    @property
    def _group(self) -> tuple[Any, ...]:
        if self.family == socket.AF_INET:
            return (dns.GROUP_IPV4, dns.PORT)
        return (dns.GROUP_IPV6, dns.PORT, 0, self.interface.index)

    @staticmethod
    def _send(via: asyncio.DatagramTransport | None, packet: bytes, to: tuple[Any, ...]) -> None:
        if via is not None and not via.is_closing():
            via.sendto(packet, to)

    async def _endpoint(
        self, loop: asyncio.AbstractEventLoop, received: Received, *, listening: bool
    ) -> asyncio.DatagramTransport:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            (self._prepare_ipv4 if self.family == socket.AF_INET else self._prepare_ipv6)(
                sock, listening
            )
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Receiver(self, received), sock=sock
            )
        except BaseException:
            sock.close()
            raise
        return transport

    def _prepare_ipv4(self, sock: socket.socket, listening: bool) -> None:
        index, group = self.interface.index, socket.inet_aton(dns.GROUP_IPV4)
        # With the source named: by itself the kernel may take another interface's address.
        source = self.interface.ipv4[0].ip.packed
        sock.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _MREQN.pack(bytes(4), source, index)
        )
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _HOPS)
        if not listening:
            sock.bind(("", 0))
            return
        _share(sock)
        sock.bind((dns.GROUP_IPV4, dns.PORT))
        sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        sock.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _MREQN.pack(group, bytes(4), index)
        )

    def _prepare_ipv6(self, sock: socket.socket, listening: bool) -> None:
        index, group = self.interface.index, socket.inet_pton(socket.AF_INET6, dns.GROUP_IPV6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
        if not listening:
            sock.bind(("::", 0))
            return
        _share(sock)
        # With a scope the kernel binds it to that interface as well.
        sock.bind((dns.GROUP_IPV6, dns.PORT, 0, index))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, _MREQ6.pack(group, index))


class _Receiver(asyncio.DatagramProtocol):
    def __init__(self, link: Link, received: Received) -> None:
        self._link = link
        self._received = received

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._received(self._link, data, addr)

    def error_received(self, exc: Exception) -> None:
        _log.debug("mdns interface=%s error=%s", self._link.interface.name, exc)


def _share(sock: socket.socket) -> None:
    """Use the port beside other mDNS programs: some of them set the one, some the other."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
