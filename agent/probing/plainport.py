"""A UDP port of our own: the rendezvous' second port, and WireGuard's own before it runs.

A shell; see `Port`. Without CAP_NET_RAW nothing can share WireGuard's port, but before the
interface is up this can hold it: probe, close, and let WireGuard take the port over, with the
mapping that NATs have for it. What has to be probed later then waits for a restart of WireGuard.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

from agent.errors import EnvironmentFault
from agent.probing import bpf, sockets
from agent.probing.port import DATAGRAM_MAX, OnDatagram, Place, Sent

_BUFFER_BYTES = DATAGRAM_MAX + 1
_ANCILLARY_BYTES = socket.CMSG_SPACE(sockets.PKTINFO6.size)
_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104 as WireGuard itself does


class PlainPort:
    """The UDP port `port` on every address of this machine; 0 takes a free one."""

    def __init__(self, port: int) -> None:
        if not 0 <= port <= 65535:
            raise ValueError(f"{port} is not a UDP port")
        self._wanted = self._port = port
        self._on_datagram: OnDatagram | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sockets: dict[int, socket.socket] = {}
        self._senders: dict[int, sockets.Sender] = {}
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)

    @property
    def port(self) -> int:
        """See `Port.port`."""
        return self._port

    def open(self, on_datagram: OnDatagram) -> None:
        """See `Port.open`; an EnvironmentFault if something else holds the port."""
        if self._sockets:
            raise ValueError(f"port {self._port} is open already")
        self._loop = asyncio.get_running_loop()
        self._on_datagram = on_datagram
        try:
            for family in _ANY:
                self._open(family)
            if not self._sockets:
                raise EnvironmentFault("this machine has neither IPv4 nor IPv6")
        except BaseException:
            self.close()
            raise

    def send(
        self, place: Place, payload: bytes, *, local: str | None = None, whole: bool = False
    ) -> Sent:
        """See `Port.send`."""
        host, port = place
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if not 1 <= port <= 65535:
            raise ValueError(f"{place} is not a place")
        try:
            socket.inet_pton(family, host)
        except OSError:
            raise ValueError(f"{host!r} is not an IP address") from None
        sender = self._senders.get(family)
        if sender is None:
            return Sent.NO_ROUTE
        if len(payload) > DATAGRAM_MAX:
            return Sent.TOO_BIG
        ancillary = [] if local is None else sockets.pktinfo(family, local)
        return sender.send((payload,), ancillary, (host, port), whole)

    def close(self) -> None:
        """See `Port.close`; the port is free when this returns."""
        for sock in self._sockets.values():
            if self._loop is not None:
                self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        self._senders.clear()
        self._on_datagram = self._loop = None
        self._port = self._wanted

    def _open(self, family: socket.AddressFamily) -> None:
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return  # this machine has only one of the two families
            raise
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            if not self._bind(sock, family):
                return
            undo.pop_all()
        self._sockets[family] = sock
        self._senders[family] = sockets.Sender(sock)
        assert self._loop is not None  # noqa: S101 set by `open`
        self._loop.add_reader(sock, sockets.read_batch, lambda: self._read(sock))

    def _bind(self, sock: socket.socket, family: socket.AddressFamily) -> bool:
        """Bind; say whether there is such a family here."""
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, sockets.IP_PKTINFO, 1)
        sockets.attach(sock, bpf.NOTHING)
        try:
            sock.bind((_ANY[family], self._port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and family == socket.AF_INET6:
                return False  # IPv6 is switched off
            if error.errno == errno.EADDRINUSE:
                raise EnvironmentFault(
                    f"UDP port {self._port} is in use",
                    hint=f"See who has it with `ss -lunp sport = :{self._port}`, or choose"
                    " another listen port.",
                ) from None
            raise EnvironmentFault(
                f"cannot use UDP port {self._port}: {error.strerror}",
                hint="Choose another listen port.",
            ) from error
        self._port = sock.getsockname()[1]
        sockets.attach(sock, bpf.from_udp_header(self._port))
        return True

    def _read(self, sock: socket.socket) -> None:
        size, ancillary, flags, address = sock.recvmsg_into([self._buffer], _ANCILLARY_BYTES)
        local = sockets.local_address(ancillary)
        zone = len(address) == 4 and address[3]
        if flags & socket.MSG_TRUNC or local is None or zone or self._on_datagram is None:
            return
        place = (address[0], address[1])
        sockets.deliver(self._on_datagram, place, bytes(self._view[:size]), local)
