"""What both ends of a tunnel do: carry datagrams between a UDP socket and a WebSocket. A shell.

Datagrams are for now or never: those that have waited longer than MAX_AGE_S for the TCP connection
are dropped, the oldest first, so that what WireGuard sends anew is not behind what it gave up. As
little as possible lies in the system's own buffers, where it could not be dropped.

    message   (length 2, datagram)…    those that were there at the same time go as one message

Used by `tunnelserver.py` and `tunnelclient.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Protocol

import aiohttp

MAX_AGE_S = 0.1
# 100 ms of 100 Mbit/s; more does not get through one WebSocket anyway.
MAX_WAITING = 1024
MAX_DATAGRAM_BYTES = 2048
# Read from the socket, or put into one message, at once.
_AT_ONCE = 64
MAX_MESSAGE_BYTES = _AT_ONCE * (MAX_DATAGRAM_BYTES + 2)
# A connection whose other end does not answer a ping in half of this is closed.
HEARTBEAT_S = 10.0
_TRANSPORT_BYTES = 64 * 1024
_UNSENT_BYTES = 128 * 1024
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h
_UDP_BUFFER_BYTES = 1024 * 1024


class WebSocket(Protocol):
    """What the server's and the client's WebSocket have alike."""

    async def send_bytes(self, data: bytes) -> None:
        """Send one message."""

    async def receive(self) -> aiohttp.WSMessage:
        """Return the next message."""


class Waiting:
    """Datagrams that wait for their turn; the oldest go when they are too many or too old."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, bytes]] = deque(maxlen=MAX_WAITING)
        self._offered = 0
        self._sent = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def dropped(self) -> int:
        """How many were dropped so far."""
        return self._offered - self._sent - len(self._kept)

    def put(self, datagram: bytes, now: float) -> None:
        """Add the newest."""
        self._offered += 1
        self._kept.append((now, datagram))

    def message(self, now: float) -> bytes:
        """Take out what still counts, at most one message's worth; b"" for none."""
        while self._kept and self._kept[0][0] < now - MAX_AGE_S:
            self._kept.popleft()
        parts = []
        for _ in range(min(_AT_ONCE, len(self._kept))):
            datagram = self._kept.popleft()[1]
            parts += [len(datagram).to_bytes(2, "big"), datagram]
            self._sent += 1
        return b"".join(parts)


def datagrams(message: bytes) -> Iterator[bytes]:
    """Yield the datagrams of a message; raises ValueError for what is none."""
    at, end = 0, len(message)
    while at < end:
        size = int.from_bytes(message[at : at + 2], "big")
        at += 2 + size
        if not 0 < size <= MAX_DATAGRAM_BYTES or at > end:
            raise ValueError("no message of datagrams")
        yield message[at - size : at]


async def carry(udp: socket.socket, web: WebSocket, transport: asyncio.Transport | None) -> None:
    """Carry both ways until the WebSocket ends. `udp` is connected and does not block."""
    if transport is not None:
        transport.set_write_buffer_limits(high=_TRANSPORT_BYTES)
        tcp = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):  # an older kernel: more then waits
            tcp.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    loop = asyncio.get_running_loop()
    waiting, stirred = Waiting(), asyncio.Event()

    def readable() -> None:
        now = time.monotonic()
        for _ in range(_AT_ONCE):
            try:
                datagram = udp.recv(MAX_DATAGRAM_BYTES + 1)
            except BlockingIOError:
                break
            except OSError:  # nobody listens where we send, which is told here
                continue
            if 0 < len(datagram) <= MAX_DATAGRAM_BYTES:
                waiting.put(datagram, now)
        stirred.set()

    async def send() -> None:
        while True:
            await stirred.wait()
            stirred.clear()
            while message := waiting.message(time.monotonic()):
                # Returns when the transport has room for more: until then the others grow old.
                await web.send_bytes(message)

    loop.add_reader(udp.fileno(), readable)
    sending = asyncio.create_task(send(), name="tunnel")
    receiving = asyncio.create_task(_receive(udp, web), name="tunnel")
    try:
        await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(udp.fileno())
        for task in (sending, receiving):
            task.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)


def loopback(port: int) -> socket.socket:
    """Return a UDP socket of this machine alone that sends to `port` here and hears only that."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_BUFFER_BYTES)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UDP_BUFFER_BYTES)
        made.bind(("127.0.0.1", 0))
        made.connect(("127.0.0.1", port))
    except BaseException:
        made.close()
        raise
    return made


async def _receive(udp: socket.socket, web: WebSocket) -> None:
    while True:
        message = await web.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            return
        with contextlib.suppress(ValueError):  # the rest of a message that is none
            for datagram in datagrams(message.data):
                with contextlib.suppress(OSError):  # full, or nobody there: lost, as on any way
                    udp.send(datagram)
