"""WireGuard's own UDP port, shared with it: a raw socket that sends from it and hears on it.

A shell; see `Port`. It sends with WireGuard's port as the source, so NATs see one flow and give it
one mapping, and gets copies of what comes to that port, of which a filter in the kernel lets
through only what begins with MAGIC. It is the same for WireGuard in the kernel and for
wireguard-go: raw sockets get their copy before the UDP layer looks for a receiver, and WireGuard
drops ours as a message of no type it knows, without an answer. The copy costs every UDP packet of
this machine about 0.3 µs of the kernel's time.

Needs CAP_NET_RAW. Open it only while WireGuard holds the port: where nobody holds it, the kernel
answers each datagram with "port unreachable", which NATs may take as the end of the flow.

Not heard: fragments the kernel cannot put together, multicast and broadcast, link-local IPv6
(WireGuard's endpoints have no zone). Datagrams that the network card joined for a receiver with
UDP_GRO (newer wireguard-go: same flow, same size, within microseconds) come as one, and the
sealing refuses them: never send two of a kind to a place without a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Sequence

from agent.errors import EnvironmentFault
from agent.probing import bpf, header, sockets
from agent.probing.port import DATAGRAM_MAX, OnDatagram, Place, Sent

# linux/in6.h: where in what we send the kernel shall put the checksum, and check it on receipt.
_IPV6_CHECKSUM_AT = 6
# Where the route to an address leaves from. A lookup takes 15 µs; a change is news to `changes.py`.
_SOURCE_KEPT_S = 30.0
_SOURCES_MAX = 1024
_BUFFER_BYTES = DATAGRAM_MAX + 128  # and an IPv4 header, and then some to see that it was cut
_ANCILLARY_BYTES = socket.CMSG_SPACE(sockets.PKTINFO6.size)


class RawPort:
    """WireGuard's port `port` (1 … 65535), beside WireGuard."""

    def __init__(self, port: int) -> None:
        if not 1 <= port <= 65535:
            raise ValueError(f"{port} is not a UDP port")
        self._port = port
        self._on_datagram: OnDatagram | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sockets: dict[int, socket.socket] = {}
        self._senders: dict[int, sockets.Sender] = {}
        self._sources: dict[str, tuple[bytes, float]] = {}
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)

    @property
    def port(self) -> int:
        """See `Port.port`."""
        return self._port

    def open(self, on_datagram: OnDatagram) -> None:
        """See `Port.open`; an EnvironmentFault without CAP_NET_RAW."""
        if self._sockets:
            raise ValueError(f"port {self._port} is open already")
        self._loop = asyncio.get_running_loop()
        self._on_datagram = on_datagram
        try:
            for family, program in (
                (socket.AF_INET, bpf.from_ip_header(self._port)),
                (socket.AF_INET6, bpf.from_udp_header(self._port)),
            ):
                self._open(family, program)
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
        if not 1 <= port <= 65535:
            raise ValueError(f"{place} is not a place")
        if len(payload) > DATAGRAM_MAX:
            return Sent.TOO_BIG
        if ":" in host:
            return self._send_ipv6(host, port, payload, local, whole)
        return self._send_ipv4(host, port, payload, local, whole)

    def forget_sources(self) -> None:
        """Look routes up anew: call it when the underlay has changed."""
        self._sources.clear()

    def close(self) -> None:
        """See `Port.close`."""
        for sock in self._sockets.values():
            if self._loop is not None:
                self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        self._senders.clear()
        self._sources.clear()
        self._on_datagram = self._loop = None

    def _open(self, family: int, program: Sequence[bpf.Instruction]) -> None:
        try:
            sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_UDP)
        except PermissionError:
            raise EnvironmentFault(
                f"cannot share UDP port {self._port} with WireGuard: this needs CAP_NET_RAW",
                hint="Run the agent as root, or give its service AmbientCapabilities=CAP_NET_RAW, "
                "or its container `--cap-add NET_RAW`.",
            ) from None
        except OSError as error:
            if error.errno in {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}:
                return  # this machine has only one of the two families
            raise EnvironmentFault(
                f"cannot share UDP port {self._port} with WireGuard: {error.strerror}"
            ) from error
        self._sockets[family] = sock
        # A raw socket hears all UDP from its first moment: stop that, then drop what it heard.
        sockets.attach(sock, bpf.NOTHING)
        sockets.drain(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, _IPV6_CHECKSUM_AT)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sockets.attach(sock, program)
        self._senders[family] = sockets.Sender(sock)
        assert self._loop is not None  # noqa: S101 set by `open`
        read = self._read_ipv6 if family == socket.AF_INET6 else self._read_ipv4
        self._loop.add_reader(sock, sockets.read_batch, read)

    def _send_ipv4(
        self, host: str, port: int, payload: bytes, local: str | None, whole: bool
    ) -> Sent:
        sender = self._senders.get(socket.AF_INET)
        destination = _packed(socket.AF_INET, host)
        if sender is None:
            return Sent.NO_ROUTE
        for _ in range(2):
            source = self._source(host) if local is None else _packed(socket.AF_INET, local)
            if source is None:
                return Sent.NO_ROUTE
            head = header.udp_header(source, destination, self._port, port, payload)
            info = sockets.PKTINFO4.pack(0, source, bytes(4))
            ancillary = [(socket.IPPROTO_IP, sockets.IP_PKTINFO, info)]
            outcome = sender.send((head, payload), ancillary, (host, 0), whole)
            # A remembered source may be gone meanwhile: then ask for the route once more.
            if outcome is not Sent.NO_ROUTE or self._sources.pop(host, None) is None:
                break
        return outcome

    def _send_ipv6(
        self, host: str, port: int, payload: bytes, local: str | None, whole: bool
    ) -> Sent:
        sender = self._senders.get(socket.AF_INET6)
        _packed(socket.AF_INET6, host)
        if sender is None:
            return Sent.NO_ROUTE
        head = header.UDP.pack(self._port, port, header.UDP.size + len(payload), 0)
        ancillary = [] if local is None else sockets.pktinfo(socket.AF_INET6, local)
        return sender.send((head, payload), ancillary, (host, 0), whole)

    def _source(self, host: str) -> bytes | None:
        """Return the address that the route to `host` leaves from (the checksum covers it)."""
        now = time.monotonic()
        known = self._sources.get(host)
        if known is not None and now < known[1]:
            return known[0]
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.connect((host, 9))  # sends nothing
                source = socket.inet_aton(asking.getsockname()[0])
        except OSError:
            return None
        if len(self._sources) >= _SOURCES_MAX:
            self._sources.clear()
        self._sources[host] = source, now + _SOURCE_KEPT_S
        return source

    def _read_ipv4(self) -> None:
        size = self._sockets[socket.AF_INET].recv_into(self._buffer)
        found = header.read_ipv4(self._view[:size])
        if found is not None and found.destination_port == self._port and found.source_port:
            self._deliver((found.source, found.source_port), found.payload, found.destination)

    def _read_ipv6(self) -> None:
        size, ancillary, flags, address = self._sockets[socket.AF_INET6].recvmsg_into(
            [self._buffer], _ANCILLARY_BYTES
        )
        local = sockets.local_address(ancillary)
        if flags & socket.MSG_TRUNC or size < header.UDP.size or local is None or address[3]:
            return
        source_port, port, length, _ = header.UDP.unpack_from(self._buffer)
        if length == size and port == self._port and source_port:
            payload = bytes(self._view[header.UDP.size : size])
            self._deliver((address[0], source_port), payload, local)

    def _deliver(self, place: Place, payload: bytes, local: str) -> None:
        if self._on_datagram is not None:
            sockets.deliver(self._on_datagram, place, payload, local)


def _packed(family: int, host: str) -> bytes:
    with contextlib.suppress(OSError):
        return socket.inet_pton(family, host)
    raise ValueError(f"{host!r} is not an IP address")
