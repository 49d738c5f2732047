"""Clients that ask again as soon as they are answered, on connections that stay.

A request is bytes that were made beforehand, and of an answer only its end is looked for: what a
client costs here is one write and one read.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import time
from dataclasses import dataclass, field

from gatewaylab.replica import MODEL

# Nothing here takes so long, even where 64 wait for LiteLLM's core.
SILENCE_S = 30.0
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class BenchError(Exception):
    """A gateway did not do what every gateway has to."""


@dataclass
class Seen:
    """What clients saw: seconds of each request, to its end and to the first byte of its body."""

    seconds: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.took_s


def request(port: int, stream_tokens: int = 0) -> bytes:
    """Return a chat request; with `stream_tokens` one for a stream of so many chunks."""
    more = {"stream": True, "max_tokens": stream_tokens} if stream_tokens else {"max_tokens": 16}
    messages = [{"role": "user", "content": "Write a sentence with every letter in it. " * 4}]
    body = json.dumps({"model": MODEL, "messages": messages, **more}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection(asyncio.Protocol):
    """Asks until told to stop; `last` is the last answer, as it came."""

    _transport: asyncio.Transport

    def __init__(self, message: bytes, seen: Seen, until: float, most: int) -> None:
        self._message, self._seen, self._until, self._most = message, seen, until, most
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last = b""
        self._got = b""
        self._body = 0
        self._end: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._got, self._body, self._end = b"", 0, None
        self._asked = time.perf_counter()
        self._transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if not self._body:
            head = self._got.find(b"\r\n\r\n")
            if head < 0:
                return
            if not self._got.startswith(b"HTTP/1.1 200"):
                self._fail(self._got[:200].decode("utf-8", "replace"))
                return
            if len(self._got) == head + 4:  # a head alone is no token yet
                return
            now = time.perf_counter()
            self._seen.first_s.append(now - self._asked)
            self._body = head + 4
            if length := _LENGTH.search(self._got, 0, head):
                self._end = self._body + int(length[1])
        whole = len(self._got) >= self._end if self._end else self._got.endswith(_LAST_CHUNK)
        if not whole:
            return
        now = time.perf_counter()
        self._seen.seconds.append(now - self._asked)
        if now < self._until and len(self._seen.seconds) < self._most:
            self._ask()
            return
        self.last = self._got
        if not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("closed the connection before the answer's end")

    def _fail(self, words: str) -> None:
        if not self.done.done():
            self.done.set_exception(BenchError(words))

    def close(self) -> None:
        self._transport.abort()


def ask(
    port: int, message: bytes, connections: int, seconds: float, most: int = 2**62
) -> tuple[Seen, bytes]:
    """Ask on so many connections for so long, or `most` times; return the last answer as well.

    Raises BenchError when an answer is none.
    """
    return asyncio.run(_ask(port, message, connections, seconds, most))


async def _ask(
    port: int, message: bytes, connections: int, seconds: float, most: int
) -> tuple[Seen, bytes]:
    seen = Seen()
    loop = asyncio.get_running_loop()
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    made: list[_Connection] = []
    try:
        for _ in range(connections):
            connection = _Connection(message, seen, began + seconds, most)
            made.append(connection)
            await loop.create_connection(lambda one=connection: one, "127.0.0.1", port)  # type: ignore[misc]
        async with asyncio.timeout(seconds + SILENCE_S):
            await asyncio.gather(*(connection.done for connection in made))
        seen.took_s = time.perf_counter() - began
    finally:
        gc.enable()
        for connection in made:
            if connection.done.done():
                connection.done.exception()
            connection.close()
    return seen, made[0].last


def body(answer: bytes) -> bytes:
    """Return an answer's body, its chunks joined."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if _LENGTH.search(head):
        return rest
    joined = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        joined += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return joined
