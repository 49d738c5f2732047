"""A head dies while requests are on their way: without a byte of an answer they get another."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway import proxy
from gateway.sockets import PROBES, connector

pytestmark = pytest.mark.slow

PATH = "/v1/chat/completions"
BODY = b'{"model":"m","messages":[]}'
LIMIT_S = 10.0
# As a status: the connection is cut instead.
_DIES = 599


class Head:
    """A server that can be killed: its port is closed and its connections are cut, as they are.

    A request to it is answered with `name` once `step` is set; `first` is sent before that.
    """

    def __init__(self, name: str, first: bytes = b"", status: int = 200) -> None:
        self.name = name
        self.first = first
        self.status = status
        self.ready = True
        self.asked = 0
        self.step = asyncio.Event()
        self.tells = asyncio.Event()  # how it is
        self.tells.set()
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._transports: set[asyncio.BaseTransport] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def up(self, port: int = 0) -> Head:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_post(PATH, self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def die(self) -> None:
        for transport in self._transports:
            assert isinstance(transport, asyncio.Transport)
            transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner = None

    async def _health(self, request: web.Request) -> web.Response:
        await self.tells.wait()
        status = {"status": "ok" if self.ready else "loading"}
        return web.json_response(status, status=200 if self.ready else 503)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        assert request.transport is not None
        self._transports.add(request.transport)
        if self.status == _DIES:
            request.transport.abort()
        if not self.ready or self.status != 200:
            return web.Response(status=self.status if self.ready else 503, text="not now")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if self.first:
            await response.prepare(request)
            await response.write(self.first)
        await self.step.wait()
        if not self.first:
            await response.prepare(request)
        await response.write(f"data: {self.name}\n\n".encode())
        await response.write_eof()
        return response


Heads = Callable[..., Any]


@pytest.fixture
async def heads() -> AsyncIterator[Heads]:
    made: list[Head] = []

    async def make(name: str, **how: Any) -> Head:
        made.append(Head(name, **how))
        return await made[-1].up()

    yield make
    for one in made:
        one.step.set()
        await one.die()


async def ask(url: str) -> tuple[int, bytes]:
    async with (
        asyncio.timeout(LIMIT_S),
        aiohttp.ClientSession() as session,
        session.post(url + PATH, data=BODY) as answer,
    ):
        return answer.status, await answer.read()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110  # what is watched has no event to wait for
            await asyncio.sleep(0.005)


async def pause_in(task: asyncio.Task[Any]) -> None:
    """Let the gateway notice, and see that it keeps the client waiting."""
    await asyncio.sleep(0.3)
    assert not task.done(), task.result()


async def test_waiting_requests_are_answered_by_the_next_head_once_each(
    heads: Heads, gateway: Any, head: Any, listed: Any
) -> None:
    first, second = await heads("first"), await heads("second")
    source = listed([head("a", first.url)])
    url = await gateway(source=source)
    asked = [asyncio.create_task(ask(url)) for _ in range(5)]
    await until(lambda: first.asked == 5)
    source.listed = []  # the mesh knows before the gateway does
    await first.die()
    await pause_in(asked[0])
    late = asyncio.create_task(ask(url))  # it comes while there is none at all
    await pause_in(late)
    source.listed = [head("b", second.url)]
    second.step.set()
    assert await asyncio.gather(*asked, late) == [(200, b"data: second\n\n")] * 6
    assert (first.asked, second.asked) == (5, 6)


async def test_the_same_head_on_the_same_port_will_do(
    heads: Heads, gateway: Any, head: Any
) -> None:
    only = await heads("only")
    url = await gateway(head("a", only.url))
    asked = asyncio.create_task(ask(url))
    await until(lambda: only.asked == 1)
    port = only.port
    await only.die()
    await pause_in(asked)
    only.step.set()
    await only.up(port)
    assert await asked == (200, b"data: only\n\n")
    assert only.asked == 2


async def test_a_stream_that_has_begun_ends_with_an_error_and_is_not_asked_again(
    heads: Heads, gateway: Any, head: Any
) -> None:
    begun, other = await heads("begun", first=b"data: 1\n\n"), await heads("other")
    other.step.set()
    other.ready = False
    url = await gateway(head("a", begun.url), head("b", other.url))
    async with aiohttp.ClientSession() as session, session.post(url + PATH, data=BODY) as answer:
        assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"
        other.ready = True
        await begun.die()
        rest = (await answer.content.read()).removesuffix(b"\n\n")
    assert "broke off" in json.loads(rest.removeprefix(b"data: "))["error"]["message"]
    assert other.asked == 0


async def test_nobody_waits_for_what_was_undeployed(
    heads: Heads, gateway: Any, head: Any, listed: Any
) -> None:
    only = await heads("only")
    source = listed([head("a", only.url)])
    url = await gateway(source=source)
    asked = asyncio.create_task(ask(url))
    await until(lambda: only.asked == 1)
    await only.die()
    await pause_in(asked)
    source.listed, source.wished = [], set()
    status, body = await asked
    assert status == 503
    assert b"No replica of 'm' answers (a cannot be reached" in body
    assert (await ask(url))[0] == 404


async def test_the_wait_is_bounded(heads: Heads, gateway: Any, head: Any, listed: Any) -> None:
    only = await heads("only")
    source = listed([head("a", only.url)])
    url = await gateway(source=source, wait_s=0.2)
    asked = asyncio.create_task(ask(url))
    await until(lambda: only.asked == 1)
    await only.die()
    assert (await asked)[0] == 503
    source.listed = []
    status, body = await ask(url)
    assert status == 503
    assert b"'m' is ready" in body
    never = await gateway(head("a", only.url), wait_s=0)
    assert (await ask(never))[0] == 503


async def replaced(heads: Heads, gateway: Any, head: Any) -> tuple[Head, str]:
    """Return a model's only head, which has answered and is not ready now, and the gateway."""
    only: Head = await heads("only")
    only.step.set()
    url: str = await gateway(head("a", only.url))
    assert (await ask(url))[0] == 200
    only.ready = False
    return only, url


async def test_requests_wait_while_a_ring_is_replaced(
    heads: Heads, gateway: Any, head: Any
) -> None:
    only, url = await replaced(heads, gateway, head)
    asked = asyncio.create_task(ask(url))
    await pause_in(asked)
    only.ready = True
    assert await asked == (200, b"data: only\n\n")


async def test_nobody_is_refused_before_it_is_known_why_another_was(
    heads: Heads, gateway: Any, head: Any
) -> None:
    only, url = await replaced(heads, gateway, head)
    only.tells.clear()
    first = asyncio.create_task(ask(url))
    await until(lambda: only.asked == 2)
    second = asyncio.create_task(ask(url))
    await pause_in(second)
    only.tells.set()
    await pause_in(second)
    only.ready = True
    assert await asyncio.gather(first, second) == [(200, b"data: only\n\n")] * 2


async def test_a_head_that_has_too_much_to_do_is_believed_at_once(
    heads: Heads, gateway: Any, head: Any
) -> None:
    busy = await heads("busy", status=503)
    url = await gateway(head("a", busy.url))
    assert await ask(url) == (503, b"not now")
    assert busy.asked == 1


async def test_a_request_that_heads_die_of_does_not_go_through_all_of_them(
    heads: Heads, gateway: Any, head: Any
) -> None:
    several = [await heads(name, status=_DIES) for name in "abcdef"]
    url = await gateway(*[head(one.name, one.url) for one in several])
    status, body = await ask(url)
    assert status == 503
    assert b"cannot be reached" in body
    assert sum(one.asked for one in several) == proxy.MAX_ATTEMPTS


async def test_only_so_many_wait(
    heads: Heads, gateway: Any, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "MAX_WAITING", 2)
    only = await heads("only")
    url = await gateway(head("a", only.url))
    asked = [asyncio.create_task(ask(url)) for _ in range(4)]
    await until(lambda: only.asked == 4)
    port = only.port
    await only.die()
    done, waiting = await asyncio.wait(asked, timeout=0.5)
    assert [task.result()[0] for task in done] == [503, 503]
    only.step.set()
    await only.up(port)
    assert [(await task)[0] for task in waiting] == [200, 200]


async def test_a_client_that_leaves_while_it_waits_is_not_asked_for(
    heads: Heads, gateway: Any, head: Any
) -> None:
    only = await heads("only")
    url = await gateway(head("a", only.url))
    asked = asyncio.create_task(ask(url))
    await until(lambda: only.asked == 1)
    port = only.port
    await only.die()
    await pause_in(asked)
    asked.cancel()
    only.step.set()
    await only.up(port)
    assert (await ask(url))[0] == 200
    assert only.asked == 2


async def test_connections_are_probed(heads: Heads) -> None:
    only = await heads("only", first=b"data: 1\n\n")
    async with connector() as made, aiohttp.ClientSession(connector=made) as session:
        answer = await session.post(only.url + PATH)
        assert answer.connection is not None and answer.connection.transport is not None
        found = answer.connection.transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == PROBES
        answer.close()
