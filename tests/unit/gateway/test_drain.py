"""The end of a gateway loses no request: not those in the kernel, nor those still being sent."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from gateway.app import GATEWAY
from gateway.bounds import Bounds
from gateway.config import Config
from gateway.drain import drain

BODY = b'{"model":"m","x":"' + b"x" * 1000 + b'"}'
REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY), BODY,
)  # fmt: skip


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is watched has no event to wait for
            await asyncio.sleep(0.005)


async def counted(request: web.Request) -> web.Response:
    return web.json_response(len(await request.read()))


async def answered(reader: asyncio.StreamReader) -> tuple[bytes, Any]:
    """Return the head and the JSON of an answer."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        return head, json.loads(await reader.readexactly(length))


def place(runner: web.AppRunner) -> tuple[str, int]:
    host, port = runner.addresses[0][:2]
    return host, port


@pytest.fixture
async def runner(upstream: Any, gateway: Any, head: Any, runners: Any) -> web.AppRunner:
    await gateway(head("a", await upstream(counted)))
    found: web.AppRunner = runners[-1]
    return found


async def test_a_body_that_is_on_its_way_arrives(runner: web.AppRunner) -> None:
    bounds = runner.app[GATEWAY].bounds
    where = place(runner)
    reader, writer = await asyncio.open_connection(*where)
    writer.write(REQUEST[:-500])
    await until(lambda: bounds.arriving == 1)
    ending = asyncio.create_task(drain(runner, bounds, 10))
    await until(lambda: not runner.sites)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*where)
    await asyncio.sleep(0.2)  # longer than anything but the body is waited for
    writer.write(REQUEST[-500:])
    first, said = await answered(reader)
    assert (first.startswith(b"HTTP/1.1 200"), said) == (True, len(BODY))
    assert b"connection: close" in first.lower()
    async with asyncio.timeout(5):
        await ending
        assert await reader.read() == b""
    writer.close()


async def test_connections_that_the_kernel_has_made_are_served(runner: web.AppRunner) -> None:
    made = [socket.create_connection(place(runner)) for _ in range(20)]
    for sock in made:
        sock.sendall(REQUEST)
    await drain(runner, runner.app[GATEWAY].bounds, 10)
    for sock in made:
        reader, writer = await asyncio.open_connection(sock=sock)
        assert (await answered(reader))[1] == len(BODY)
        writer.close()


async def test_those_who_wait_for_their_turn_get_it(
    upstream: Any, gateway: Any, head: Any, runners: Any
) -> None:
    step = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        await step.wait()
        return await counted(request)

    await gateway(head("a", await upstream(handler)), per_replica=1)
    runner = runners[-1]
    bounds = runner.app[GATEWAY].bounds
    asked = [await asyncio.open_connection(*place(runner)) for _ in range(3)]
    for _, writer in asked:
        writer.write(REQUEST)
    await until(lambda: bounds.running == 3)
    ending = asyncio.create_task(drain(runner, bounds, 10))
    await until(lambda: not runner.sites)
    step.set()
    for reader, writer in asked:
        assert (await answered(reader))[1] == len(BODY)
        writer.close()
    await ending


async def test_the_wait_for_a_body_is_bounded(runner: web.AppRunner) -> None:
    bounds = runner.app[GATEWAY].bounds
    reader, writer = await asyncio.open_connection(*place(runner))
    writer.write(REQUEST[:-500])
    await until(lambda: bounds.arriving == 1)
    async with asyncio.timeout(10):
        await drain(runner, bounds, 0.3)
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(("left", "seconds", "still"), [([300, 200, 0], 5.0, 0), ([300], 0.2, 300)])
async def test_the_end_of_an_answer_is_waited_for(
    left: list[int], seconds: float, still: int
) -> None:
    def size() -> int:
        return left.pop(0) if len(left) > 1 else left[0]

    async def shutdown(timeout_s: float) -> None:
        assert timeout_s > 0

    connection = SimpleNamespace(transport=SimpleNamespace(get_write_buffer_size=size))
    server = SimpleNamespace(connections=[connection], pre_shutdown=lambda: None, shutdown=shutdown)
    fake: Any = SimpleNamespace(server=server, sites=set())
    async with asyncio.timeout(10):
        await drain(fake, Bounds(Config()), seconds)
    assert left == [still]
