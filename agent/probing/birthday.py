"""The hard side's many sockets: behind a NAT with a place for each, one of them will be found.

A shell. A hard NAT gives each of our sockets another outside port, and nobody knows which. With
256 of them open towards the peer's one place, and the peer sending to ports at random, it meets
one within 175 sends as often as not (as with birthdays). The socket that it met tells which local
port the NAT has open for the peer; `snat.py` then makes WireGuard use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.errors import EnvironmentFault
from agent.probing import sockets
from agent.probing.port import DATAGRAM_MAX, MAGIC, Place, Sent

_log = logging.getLogger(__name__)

SOCKETS = 256
# With fewer, 2,000 sends of the peer find one less than every second time: not worth the noise.
SOCKETS_MIN = 22
# For what the rest of the agent opens meanwhile: links, engines' pipes, files.
DESCRIPTORS_SPARED = 128
# NATs forget a UDP flow that was never answered after 30 s, the strictest after 20.
REFRESH_S = 10.0
# Cheap routers drop from bursts: 32 together, and 4 ms for them to open the mappings.
_BURST, _PAUSE_S = 32, 0.004
# Answers per socket and wake-up.
_READS = 4
_ANCILLARY_BYTES = socket.CMSG_SPACE(sockets.PKTINFO6.size)

Valid = Callable[[Place, bytes], bool]
"""Says whether a datagram proves that the peer sent it: it is sealed, and this opens it."""


@dataclass(frozen=True)
class Hit:
    """The peer met one of the sockets, which stays open (and its port ours) until `close`.

    `local_address` and `local_port` are what its datagram came to, `place` where it came from.
    """

    local_address: str
    local_port: int
    place: Place
    payload: bytes
    _socket: socket.socket = field(repr=False)

    def send(self, payload: bytes) -> Sent:
        """Send to the peer from the port that was met, so that it learns our outside port."""
        local = sockets.pktinfo(self._socket.family, self.local_address)
        return sockets.Sender(self._socket).send((payload,), local, self.place, False)

    def close(self) -> None:
        """Let go of the port; once WireGuard uses it by a rule, only when that rule is gone."""
        self._socket.close()


class Birthday:
    """Up to `count` sockets that send to `place`; `valid` judges what comes back."""

    def __init__(self, place: Place, valid: Valid, *, count: int = SOCKETS) -> None:
        if count < 1 or not 1 <= place[1] <= 65535:
            raise ValueError(f"{count} sockets to {place} make no birthday path")
        self._family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        socket.inet_pton(self._family, place[0])
        self._place = place
        self._valid = valid
        self._count = count
        self._sockets: list[socket.socket] = []
        self._buffer = bytearray(DATAGRAM_MAX)
        self._hit: asyncio.Future[Hit] | None = None

    @property
    def open_sockets(self) -> int:
        """How many sockets are open: fewer than asked for where descriptors are short."""
        return len(self._sockets)

    def open(self) -> None:
        """Open the sockets and listen. EnvironmentFault if there are too few descriptors."""
        if self._hit is not None:
            raise ValueError("the sockets are open already")
        loop = asyncio.get_running_loop()
        wanted = min(self._count, spare_descriptors())
        least = min(SOCKETS_MIN, self._count)
        self._hit = loop.create_future()
        try:
            while len(self._sockets) < wanted and (made := self._socket()) is not None:
                self._sockets.append(made)
                loop.add_reader(made, self._read, made)
        except BaseException:
            self.close()
            raise
        if len(self._sockets) < least:
            short = len(self._sockets)
            self.close()
            raise EnvironmentFault(
                f"only {short} of {least} sockets could be opened to get through a hard NAT",
                hint="Raise the agent's limit of open files: LimitNOFILE=4096 in its service.",
            )

    async def send(self, payload: bytes) -> int:
        """Send from every socket, in small bursts (40 ms); return how many went out."""
        sent = 0
        for number, sock in enumerate(tuple(self._sockets)):
            if number and number % _BURST == 0:
                await asyncio.sleep(_PAUSE_S)
            if sock.fileno() >= 0:
                outcome = sockets.Sender(sock).send((payload,), [], self._place, False)
                sent += outcome is Sent.SENT
        return sent

    async def hit(self, payload: Callable[[], bytes], timeout_s: float) -> Hit | None:
        """Send, and again every REFRESH_S, until the peer meets a socket; None after `timeout_s`.

        `payload` makes each round's datagram. The other sockets are closed when this returns, and
        all of them when it is cancelled.
        """
        if self._hit is None:
            raise ValueError("the sockets are not open")
        found: Hit | None = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while not self._hit.done():
                        await self.send(payload())
                        await asyncio.wait({self._hit}, timeout=REFRESH_S)
            if self._hit.done():
                found = self._hit.result()
        finally:
            self._close(keep=found)
        return found

    def close(self) -> None:
        """Close every socket (2 ms); may be called twice."""
        self._close(keep=None)

    def _socket(self) -> socket.socket | None:
        """Return a socket on a port of its own; None when there are no more."""
        try:
            made = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                return None
            raise EnvironmentFault(f"cannot open a UDP socket: {error.strerror}") from error
        try:
            if self._family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                made.setsockopt(socket.IPPROTO_IP, sockets.IP_PKTINFO, 1)
            made.bind(("", 0))
        except OSError as error:
            made.close()
            if error.errno == errno.EADDRINUSE:
                return None  # the machine's range of ports is used up
            raise EnvironmentFault(f"cannot bind a UDP socket: {error.strerror}") from error
        return made

    def _read(self, sock: socket.socket) -> None:
        for _ in range(_READS):
            try:
                size, ancillary, flags, address = sock.recvmsg_into(
                    [self._buffer], _ANCILLARY_BYTES
                )
            except OSError:
                return
            place, payload = (address[0], address[1]), bytes(self._buffer[:size])
            local = sockets.local_address(ancillary)
            # Only the peer's own address can have been let in by the NAT for a purpose.
            ours = place[0] == self._place[0] and payload.startswith(MAGIC)
            if self._hit is None or self._hit.done() or local is None or not ours:
                continue
            if flags & socket.MSG_TRUNC or not self._judge(place, payload):
                continue
            port = sock.getsockname()[1]
            self._hit.set_result(Hit(local, port, place, payload, sock))
            return

    def _judge(self, place: Place, payload: bytes) -> bool:
        try:
            return self._valid(place, payload)
        except Exception:
            _log.exception("judging a datagram from %s failed", place[0])
            return False

    def _close(self, keep: Hit | None) -> None:
        hit, self._hit = self._hit, None
        if hit is not None and not hit.done():
            hit.cancel()
        loop = asyncio.get_running_loop() if self._sockets else None
        for sock in self._sockets:
            assert loop is not None  # noqa: S101 there are sockets
            loop.remove_reader(sock)
            if keep is None or sock is not keep._socket:
                sock.close()
        self._sockets.clear()


def spare_descriptors() -> int:
    """Return how many descriptors this process may still open, less DESCRIPTORS_SPARED."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return SOCKETS
    used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 a Path for each would cost more
    return max(0, soft - used - DESCRIPTORS_SPARED)
