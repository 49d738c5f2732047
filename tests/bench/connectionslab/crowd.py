"""Connections that are of no use to anyone, each kind as strangers may make them by thousands."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

from connectionslab.replica import MODEL

_RESET = struct.pack("ii", 1, 0)
# So few at a time that the kernel's queue of connections holds them.
_AT_ONCE = 64
_EACH_S = 0.5
_READ_BUFFER_BYTES = 4096
PATIENCE_S = 60.0


def message(body_bytes: int | None = None, **fields: object) -> bytes:
    """Return a chat request; with `body_bytes` its head and only so much of its body."""
    body = json.dumps({"model": MODEL, "messages": [], **fields}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body[:body_bytes]


class Crowd:
    """All the connections of a wave to the gateway on `port`; `held` are those that stay."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.held: dict[str, list[socket.socket]] = {}
        self.made = 0
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def gather(self, kind: str, count: int) -> None:
        """Make so many connections of a kind."""
        self.held.setdefault(kind, [])
        await asyncio.gather(*(self._one(kind) for _ in range(count)))

    async def _one(self, kind: str) -> None:
        async with self._turn, asyncio.timeout(PATIENCE_S):
            sock = socket.socket()
            sock.setblocking(False)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _READ_BUFFER_BYTES)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, ("127.0.0.1", self._port))
                stays = await KINDS[kind](sock)
            except BaseException:
                sock.close()
                raise
            self.made += 1
            if stays:
                self.held[kind].append(sock)
            else:
                reset(sock)

    async def go_on(self) -> None:
        """Do what those that stay do, until cancelled: send another byte, read another few."""
        head = message(0)
        turn = 1
        while True:
            await asyncio.sleep(_EACH_S)
            for sock in self.held.get("trickling", ()):
                with suppress(OSError):  # the gateway has closed it
                    sock.send(head[turn : turn + 1])
            for sock in self.held.get("slow", ()):
                with suppress(OSError):
                    sock.recv(1024)
            turn = min(turn + 1, len(head) - 2)

    def left(self, kind: str) -> int:
        """Return how many of those that stayed the gateway has not closed."""
        return sum(not _closed(sock) for sock in self.held[kind])

    def leave(self) -> None:
        """Reset all that are left."""
        for kind in self.held.values():
            while kind:
                reset(kind.pop())


def reset(sock: socket.socket) -> None:
    """Close a connection as one whose program has crashed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def _closed(sock: socket.socket) -> bool:
    try:
        while piece := sock.recv(2**16):
            if not piece:
                break
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


async def _send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def _silent(sock: socket.socket) -> bool:
    return True


async def _trickling(sock: socket.socket) -> bool:
    await _send(sock, message()[:1])
    return True


async def _half(sock: socket.socket) -> bool:
    await _send(sock, message(9))
    return True


async def _slow(sock: socket.socket) -> bool:
    await _send(sock, message(stream=True))
    assert (await _first(sock)).startswith(b"HTTP/1.1 200")
    return True


async def _reset_asking(sock: socket.socket) -> bool:
    await _send(sock, message(9))
    await asyncio.sleep(0.01)
    return False


async def _reset_waiting(sock: socket.socket) -> bool:
    await _send(sock, message(wait=True))
    await asyncio.sleep(0.1)
    return False


async def _reset_streaming(sock: socket.socket) -> bool:
    await _slow(sock)
    return False


async def _first(sock: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, 512)


# Whether a connection of the kind stays; the others are reset at once.
KINDS: dict[str, Callable[[socket.socket], Awaitable[bool]]] = {
    "silent": _silent,
    "trickling": _trickling,
    "half": _half,
    "slow": _slow,
    "reset asking": _reset_asking,
    "reset waiting": _reset_waiting,
    "reset streaming": _reset_streaming,
}
