"""Bounds on what one request, and all together, may take."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.app import GATEWAY
from gateway.bounds import SMALL_BODY_BYTES

PATH = "/v1/chat/completions"
BODY = b'{"model": "m"}'


async def post(url: str) -> Any:
    """Return (status, JSON, headers) of a POST."""
    async with aiohttp.ClientSession() as session, session.post(url + PATH, data=BODY) as answer:
        return answer.status, json.loads(await answer.read() or b"{}"), answer.headers


async def test_places_are_bounded_and_come_free(upstream: Any, gateway: Any, head: Any) -> None:
    arrived, step = asyncio.Event(), asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        arrived.set()
        await step.wait()
        return web.json_response({})

    url = await gateway(head("a", await upstream(handler)), max_requests=1)
    running = asyncio.create_task(post(url))
    await arrived.wait()
    status, body, headers = await post(url)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "All 1 places" in body["error"]["message"]
    step.set()
    assert (await running)[0] == 200
    assert (await post(url))[0] == 200


async def test_a_body_that_does_not_come(upstream: Any, gateway: Any, head: Any) -> None:
    url = await gateway(body_timeout_s=0.1)
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n{")
    async with asyncio.timeout(5):
        assert b"408" in await reader.readline()
        text = await reader.readuntil(b"}}")
    assert b"did not arrive within 0.1 s" in text
    writer.close()


async def test_a_request_that_takes_too_long(upstream: Any, gateway: Any, head: Any) -> None:
    left = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        try:
            await asyncio.sleep(30)
        finally:
            left.set()
        return web.Response()

    url = await gateway(head("a", await upstream(handler)), request_timeout_s=0.1)
    status, body, _ = await post(url)
    assert status == 504
    assert body["error"]["message"] == "The request took longer than 0.1 s."
    async with asyncio.timeout(5):
        await left.wait()  # the replica is free again


async def test_an_answer_that_takes_too_long_is_not_taken_for_a_whole_one(
    upstream: Any, gateway: Any, head: Any
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.sleep(30)
        return response

    url = await gateway(head("a", await upstream(handler)), request_timeout_s=0.2)
    async with aiohttp.ClientSession() as session:
        answer = await session.post(url + PATH, data=BODY)
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


def request(size: int) -> bytes:
    body = b'{"model": "m", "x": "' + b"x" * (size - 23) + b'"}'
    head = f"POST {PATH} HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


async def test_bodies_are_bounded_together_and_small_ones_pass(
    upstream: Any, gateway: Any, head: Any, runners: Any
) -> None:
    step = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await step.wait()
        return web.json_response({})

    url = await gateway(head("a", await upstream(handler)), max_bodies_bytes=400_000)
    bounds = runners[-1].app[GATEWAY].bounds
    where = url.removeprefix("http://").split(":")

    async def until_held(least: int, most: int) -> None:
        async with asyncio.timeout(5):
            while not least <= bounds.held_bytes <= most:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.005)

    async def sent(data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*where)
        writer.write(data)
        return reader, writer

    _, half = await sent(request(300_000)[:-100_000])  # one that never comes whole
    await until_held(150_000, 250_000)
    served, serving = await sent(request(100_000))  # and one that runs
    await until_held(250_000, 350_000)
    refused, writer = await sent(request(300_000))
    async with asyncio.timeout(5):
        assert b"503" in await refused.readline()
        assert b"as large as may be together" in await refused.readuntil(b"}}")
    writer.close()
    small, small_writer = await sent(request(SMALL_BODY_BYTES))
    half.close()
    await until_held(100_000, 100_000)
    step.set()
    async with asyncio.timeout(5):
        assert b"200" in await served.readline()
        assert b"200" in await small.readline()
    await until_held(0, 0)
    for one in (serving, small_writer):
        one.close()


async def test_a_body_that_says_it_is_too_long_is_not_waited_for(gateway: Any) -> None:
    url = await gateway(max_body_bytes=1000)
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    writer.write(request(2000)[:-1900])
    async with asyncio.timeout(5):
        assert b"413" in await reader.readline()
    writer.close()


async def test_a_late_answer_without_a_length_is_reset(
    upstream: Any, gateway: Any, head: Any
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.sleep(30)
        return response

    url = await gateway(head("a", await upstream(handler)), request_timeout_s=0.2)
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    writer.write(request(100).replace(b"HTTP/1.1", b"HTTP/1.0"))
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionResetError):
            await reader.read()
    writer.close()
