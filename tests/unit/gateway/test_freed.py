"""What useless clients take is freed, what they began is ended, and others are served meanwhile.

A few of each kind in one process, where all can be counted; `tests/bench/connections.py` has
10,000 of them before the real program.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from gateway import upstream as upstream_module
from gateway.app import GATEWAY
from gateway.errors import ApiError
from gateway.routing import Replica
from gateway.upstream import Upstream

EACH = 20
DIALECTS = {
    "/v1/chat/completions": b'{"model":"m","messages":[],"stream":true}',
    "/v1/messages": b'{"model":"m","max_tokens":9,"stream":true,'
    b'"messages":[{"role":"user","content":"hello"}]}',
    "/api/chat": b'{"model":"m","messages":[{"role":"user","content":"hello"}]}',
}
CHUNK = (
    b'data: {"id":"c","created":1,"model":"m","choices":[{"index":0,"finish_reason":null,'
    b'"delta":{"content":"%s"}}]}\n\n' % (b"x" * 4000)
)


class Endless:
    """A replica: streams until its client is gone, or waits with it, or answers at once."""

    def __init__(self) -> None:
        self.running = 0
        self.sent_bytes = 0

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.running += 1
        try:
            if b'"wait"' in body:
                await asyncio.sleep(60)
            if b'"stream":true' not in body:
                return web.json_response({})
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            while True:
                await response.write(CHUNK)
                self.sent_bytes += len(CHUNK)
        finally:
            self.running -= 1


class Client:
    """Bare connections to the gateway at `url`."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._where = host, int(port)

    async def send(
        self, body: bytes, path: str = "/v1/chat/completions", most: int | None = None
    ) -> socket.socket:
        """Send a request, `most` bytes of it, and return the connection, which reads little."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, self._where)
        await loop.sock_sendall(sock, (head.encode() + body)[:most])
        return sock

    async def served(self) -> bool:
        sock = await self.send(b'{"model":"m"}')
        with sock:
            return await begins(sock)


async def begins(sock: socket.socket) -> bool:
    async with asyncio.timeout(10):
        said = await asyncio.get_running_loop().sock_recv(sock, 64)
    return said.startswith(b"HTTP/1.1 200")


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # what is watched has no event to wait for
            await asyncio.sleep(0.01)


async def half(client: Client) -> socket.socket:
    return await client.send(b"{" + b" " * 1000, most=300)


async def waiting(client: Client) -> socket.socket:
    return await client.send(b'{"model":"m","wait":1}')


async def streaming(client: Client) -> socket.socket:
    sock = await client.send(DIALECTS["/v1/chat/completions"])
    assert await begins(sock)
    return sock


async def silent(client: Client) -> socket.socket:
    return await client.send(b"", most=0)


Kind = Callable[[Client], Awaitable[socket.socket]]


@pytest.mark.parametrize("kind", [half, waiting, streaming, silent])
async def test_all_is_freed(
    upstream: Any, gateway: Any, head: Any, runners: Any, kind: Kind
) -> None:
    replica = Endless()
    url = await gateway(head("a", await upstream(replica.serve)))
    runner = runners[-1]
    bounds, client = runner.app[GATEWAY].bounds, Client(url)
    assert await client.served()
    await until(lambda: not runner.server.connections)
    tasks = len(asyncio.all_tasks())
    many = await asyncio.gather(*(kind(client) for _ in range(EACH)))
    if kind in (waiting, streaming):
        await until(lambda: replica.running == EACH)
    if kind is half:
        await until(lambda: bounds.arriving == EACH)
    assert len(runner.server.connections) >= EACH
    assert await client.served()
    for sock in many:
        reset(sock)
    await until(lambda: not runner.server.connections)
    await until(lambda: replica.running == 0)
    assert (bounds.arriving, bounds.running, bounds.held_bytes) == (0, 0, 0)
    # A round of checks may be going on, and a connection to the replica waits for more.
    await until(lambda: len(asyncio.all_tasks()) < tasks + 5)
    assert await client.served()


@pytest.mark.parametrize("path", DIALECTS)
async def test_a_slow_client_holds_back_its_own_stream_and_no_other(
    upstream: Any, gateway: Any, head: Any, path: str
) -> None:
    replica = Endless()
    client = Client(await gateway(head("a", await upstream(replica.serve))))
    sock = await client.send(DIALECTS[path], path)
    assert await begins(sock)
    sent, still = -1, 0
    async with asyncio.timeout(30):
        while still < 10:  # the replica has not got rid of a byte for so many looks
            await asyncio.sleep(0.02)
            still = still + 1 if replica.sent_bytes == sent else 0
            sent = replica.sent_bytes
    assert all([await client.served() for _ in range(5)])
    assert replica.sent_bytes == sent
    assert replica.running == 1
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30):
        while replica.sent_bytes == sent:  # it goes on where it was
            assert await loop.sock_recv(sock, 2**16)
    reset(sock)
    await until(lambda: replica.running == 0)


def test_a_file_that_is_missing_here_is_no_fault_of_a_replica() -> None:
    class Untold:
        """A router that must not hear of it."""

    untold: Any = Untold()
    replica = Replica("a", "http://h", "named")
    error = OSError(24, "Too many open files")
    refusal = Upstream(untold, untold)._no_answer(replica, error)
    assert isinstance(refusal, ApiError)
    assert (refusal.status, refusal.retry_after_s) == (503, 1)
    assert upstream_module.errno.EMFILE == 24
