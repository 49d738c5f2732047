"""HTTP as bare bytes on the loopback: a replica, the real gateway before it, and a client.

aiohttp's client and server are part of the gateway; here neither end is theirs. Loaded by
`conftest.py`, whose fixture `world` is one of them for each module.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from gateway import proxy
from gateway.app import GATEWAY, make_app
from gateway.config import Config

BODY = b'{"model":"m"}'
Headers = list[tuple[str, str]]


@dataclass
class Answer:
    """An answer as it goes over the wire."""

    status: int = 200
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    framing: str = "length"
    sizes: tuple[int, ...] = ()
    extension: bytes = b""
    trailers: bytes = b""
    interim: bytes = b""

    @property
    def bodiless(self) -> bool:
        return self.status in (204, 304)

    def wire(self) -> tuple[bytes, int]:
        """Return the bytes, and how many of them make a whole answer."""
        head = self.interim + b"HTTP/1.1 %d Said\r\n" % self.status
        head += b"".join(f"{name}: {value}\r\n".encode() for name, value in self.headers)
        if self.bodiless:
            whole = head + b"\r\n"
            return whole, len(whole)
        if self.framing == "length":
            whole = head + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body
            return whole, len(whole)
        if self.framing == "close":
            whole = head + b"Connection: close\r\n\r\n" + self.body
            return whole, len(whole)
        whole = head + b"Transfer-Encoding: chunked\r\n\r\n"
        at, sizes = 0, iter(self.sizes)
        while at < len(self.body):
            piece = self.body[at : at + next(sizes, 2**20)]
            whole += b"%x%s\r\n%s\r\n" % (len(piece), self.extension, piece)
            at += len(piece)
        whole += b"0" + self.extension + b"\r\n"
        return whole + self.trailers + b"\r\n", len(whole)


@dataclass
class Got:
    status: int
    headers: dict[str, list[str]]
    body: bytes
    whole: bool


class Replica:
    """Answers each POST with `answer`, in writes that end at `cuts`; ends early at `stop`."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.cuts: list[int] = []
        self.stop: int | None = None
        self.reset = False
        self.asked: tuple[dict[str, str], bytes] = ({}, b"")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *fields = head.split("\r\n")[:-2]
        headers = {n.lower(): v.strip() for n, _, v in (f.partition(":") for f in fields)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if line.startswith("GET"):
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}')
            return True
        self.asked = headers, body
        wire = self.answer.wire()[0]
        stop = len(wire) if self.stop is None else self.stop
        places = sorted({cut % (stop + 1) for cut in self.cuts})
        for start, end in zip([0, *places], [*places, stop], strict=True):
            writer.write(wire[start:end])
            await writer.drain()
            await asyncio.sleep(0)
        if self.reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return self.stop is None and self.answer.framing != "close"


class World:
    """One loop with the replica and the gateway; `ask` is one example."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.replica = Replica()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self.replica.serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        config = Config(replicas={"r": f"http://127.0.0.1:{port}"}, wait_s=0.0)
        app = make_app(config, None)
        router = app[GATEWAY]._router
        # Each example has to reach the replica, whatever it did in those before.
        router.fault = lambda *_: None
        router.lacks = lambda *_: None
        router.replicas = list  # no checks: it has its model, and is ready
        self._app = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._app.setup()
        router.check_passed(f"http://127.0.0.1:{port}", ("m",), 0.0, 0.001)
        await web.TCPSite(self._app, "127.0.0.1", 0).start()
        self.port = self._app.addresses[0][1]

    async def stop(self) -> None:
        await self._app.cleanup()
        self._server.close()

    def through(self, answer: Answer, cuts: list[int], request: list[bytes]) -> Got:
        """Return what a client gets for the replica's whole answer."""
        return self.through_to(answer, cuts, None, request)

    def through_to(
        self, answer: Answer, cuts: list[int], stop: int | None, request: list[bytes], *,
        reset: bool = False,
    ) -> Got:  # fmt: skip
        """Return what a client gets when the replica leaves after `stop` bytes."""
        self.replica.answer, self.replica.cuts = answer, cuts
        self.replica.stop, self.replica.reset = stop, reset
        return self.runner.run(self._ask(request))

    async def _ask(self, request: list[bytes]) -> Got:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                for piece in request:
                    writer.write(piece)
                    await asyncio.sleep(0)
                return await read(reader)
            finally:
                writer.close()


async def read(reader: asyncio.StreamReader) -> Got:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *fields = head.split("\r\n")[:-2]
    headers: dict[str, list[str]] = defaultdict(list)
    for name, _, value in (f.partition(":") for f in fields):
        headers[name.lower()].append(value.strip())
    got = Got(int(line.split()[1]), headers, b"", False)
    try:
        if got.status in (204, 304):
            pass
        elif "transfer-encoding" in headers:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                got.body += await some(reader, got, size)
                assert await reader.readexactly(2) == b"\r\n"
            assert await reader.readexactly(2) == b"\r\n"
        elif "content-length" in headers:
            got.body += await some(reader, got, int(headers["content-length"][0]))
        else:
            while piece := await reader.read(2**16):
                got.body += piece
    except (asyncio.IncompleteReadError, ConnectionError):
        return got
    got.whole = True
    return got


async def some(reader: asyncio.StreamReader, got: Got, size: int) -> bytes:
    try:
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        got.body += error.partial
        raise


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "backoff_s", lambda *_: 0.0)
        made = World()
        with made.runner:
            made.runner.run(made.start())
            yield made
            made.runner.run(made.stop())


def asking(
    version: str = "1.1", more: bytes = b"", body: bytes = BODY,
    path: str = "/v1/chat/completions",
) -> list[bytes]:  # fmt: skip
    """Return a request, as pieces to be written."""
    head = f"POST {path} HTTP/{version}\r\nHost: h\r\n".encode() + more
    return [head + b"Content-Length: %d\r\n\r\n" % len(body) + body]
