"""One request to a replica and its answer: the connections, and what servers do to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from multidict import CIMultiDict

from gateway.exchange import Answer, Exchanges
from gateway.sockets import connector

LARGE = b"x" * (32 << 20)

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A server that does to each connection what it is told; `connections` came so far."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0
        self.port = 0

    async def taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()


@asynccontextmanager
async def asking(
    serve: Serve, silence_s: float = 30.0
) -> AsyncIterator[tuple[Server, Callable[..., Awaitable[Answer]]]]:
    server = Server(serve)
    listening = await asyncio.start_server(server.taken, "127.0.0.1", 0, limit=2**26)
    server.port = listening.sockets[0].getsockname()[1]
    connections = connector()
    exchanges = Exchanges(connections, silence_s)

    async def ask(body: bytes = b"{}", base: str = "", path: str = "/v1/x?a=b") -> Answer:
        base = f"http://127.0.0.1:{server.port}{base}"
        return await exchanges.ask(base, path, CIMultiDict({"X-Mine": "é"}), body)

    async with listening, asyncio.timeout(30):
        yield server, ask
        await connections.close()


async def request(reader: asyncio.StreamReader) -> bytes:
    """Read a request with a small body, and return it."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


async def test_a_request_is_sent_as_it_is_given_on_a_connection_that_is_kept() -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await request(reader))
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: A/b; c=d\r\nContent-Length: 2\r\n\r\nok"
            )

    async with asking(serve) as (server, ask):
        for _ in range(3):
            answer = await ask(b'{"a": 1}', base="/base")
            assert (answer.status, answer.reason) == (200, "OK")
            assert (answer.content_type, answer.content_length) == ("a/b", 2)
            assert await answer.content.readany() == b"ok"
            answer.close()
        assert server.connections == 1
    head, _, body = seen[-1].partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /base/v1/x?a=b HTTP/1.1"
    assert f"Host: 127.0.0.1:{server.port}".encode() in head
    assert "X-Mine: é".encode() in head
    assert body == b'{"a": 1}'


async def test_what_is_said_unasked_is_no_answer_to_the_next_request() -> None:
    said = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")
        if said.is_set():
            return
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlies")
        await writer.drain()
        said.set()
        await reader.read()

    async with asking(serve) as (server, ask):
        answer = await ask()
        assert await answer.content.readany() == b"true"
        await said.wait()
        await asyncio.sleep(0.05)
        answer = await ask()
        assert await answer.content.readany() == b"true"
        assert server.connections == 2


async def test_an_answer_before_the_request_was_read_is_heard_and_ends_the_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # it reads no further
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await asyncio.sleep(0.5)

    async with asking(serve) as (server, ask):
        for count in (1, 2):
            answer = await ask(LARGE)
            assert (answer.status, await answer.content.readany()) == (413, b"no")
            assert server.connections == count


async def test_a_large_request_arrives_whole() -> None:
    seen: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(len(await request(reader)))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with asking(serve) as (_, ask):
        answer = await ask(LARGE)
        assert (answer.status, await answer.content.readany()) == (204, b"")
    assert seen[0] > len(LARGE)


async def test_a_server_that_says_no_http_or_nothing_is_one_kind_of_error() -> None:
    answers = [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(answers.pop(0))

    async with asking(serve) as (_, ask):
        with pytest.raises(aiohttp.ClientPayloadError, match="no HTTP"):
            await ask()
        for _ in range(2):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await ask()


async def test_silence_ends() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        await reader.read()

    async with asking(serve, silence_s=0.2) as (_, ask):
        answer = await ask()
        with pytest.raises(aiohttp.SocketTimeoutError):
            await answer.content.readany()
        answer.close()


async def test_who_is_cancelled_leaves_no_connection() -> None:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        assert await reader.read() == b""
        left.set()

    async with asking(serve) as (_, ask):
        task = asyncio.create_task(ask())  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        task.cancel()
        await left.wait()
