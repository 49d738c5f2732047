"""A replica stands still before its first byte: another one is asked as well, and one loses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from gateway import hedging
from gateway.app import GATEWAY, make_app
from gateway.config import Config
from gateway.routing.prediction import FEW

pytestmark = pytest.mark.slow

PATH = "/v1/chat/completions"
BODY = b'{"model":"m","messages":[]}'
LIMIT_S = 20.0
# Long enough for a hedge to show that should not be there; short ones only miss it.
PAUSE_S = 0.8


class Server:
    """Answers with its name; while it `stalls`, not before `step` is set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stalls = False
        self.status = 200
        self.asked = 0
        self.left = asyncio.Event()
        self.step = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        self.asked += 1
        if self.stalls:
            try:
                await self.step.wait()
            except asyncio.CancelledError:  # the connection was closed
                self.left.set()
                raise
        text = {"role": "assistant", "content": self.name}
        answer = {"choices": [{"index": 0, "message": text, "finish_reason": "stop"}]}
        return web.json_response(answer, status=self.status)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has other work makes no replica late."""
    monkeypatch.setattr(hedging, "LEAST_S", 0.4)


Made = Callable[..., Any]


@pytest.fixture
def pool(upstream: Any, gateway: Any, head: Any) -> Made:
    """Return a gateway before replicas that it knows, and these, the one whose turn it is first."""

    async def make(count: int = 2, **config: Any) -> tuple[str, list[Server]]:
        servers = [Server(name) for name in "abc"[:count]]
        heads = [head(one.name, await upstream(one.answer)) for one in servers]
        url = await gateway(*heads, strategy="round_robin", **config)
        turns = [(await ask(url))[2]["x-covey-replica"] for _ in range(count * (FEW + 1))]
        for one in servers:
            one.asked = 0
        return url, sorted(servers, key=lambda one: turns[-count:].index(one.name))

    return make


async def ask(url: str, path: str = PATH, body: bytes = BODY, **headers: str) -> Any:
    """Return (status, what was said, headers)."""
    async with (
        asyncio.timeout(LIMIT_S),
        aiohttp.ClientSession() as session,
        session.post(url + path, data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.read(), answer.headers


def said(name: str) -> bytes:
    return f'"content": "{name}"'.encode()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110  # what is watched has no event to wait for
            await asyncio.sleep(0.005)


async def gone(*servers: Server) -> None:
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*(one.left.wait() for one in servers))


async def counted(url: str) -> tuple[float, float, float]:
    """Return hedges sent and won, and retries; and see that nothing is left at any replica."""
    read = "replica_in_flight{} 1"
    async with asyncio.timeout(LIMIT_S), aiohttp.ClientSession() as session:
        while re.search(r"replica_in_flight\{.*\} [^0]", read):
            async with session.get(url + "/metrics") as answer:
                read = await answer.text()

    def value(name: str) -> float:
        found = re.search(rf"^covey_gateway_{name} (\S+)$", read, re.MULTILINE)
        return float(found[1]) if found else 0.0

    return (value(r'hedges_total\{what="sent"\}'), value(r'hedges_total\{what="won"\}'),
            value("retries_total"))  # fmt: skip


async def test_the_second_wins_and_the_first_is_let_go(pool: Made) -> None:
    url, (slow, well) = await pool()
    slow.stalls = True
    status, body, headers = await ask(url)
    assert (status, headers["x-covey-replica"]) == (200, well.name)
    assert said(well.name) in body
    assert re.match(
        rf"hedge; predicted .*; {slow.name} had no first byte after ", headers["x-covey-route"]
    )
    await gone(slow)
    assert (slow.asked, well.asked) == (1, 1)
    assert await counted(url) == (1, 1, 0)


async def test_the_first_wins_and_the_second_is_let_go(pool: Made) -> None:
    url, (first, second, third) = await pool(3)
    for one in (first, second, third):
        one.stalls = True
    asked = asyncio.create_task(ask(url))
    await until(lambda: second.asked + third.asked == 1)
    await asyncio.sleep(PAUSE_S)
    assert second.asked + third.asked == 1  # once a request
    first.step.set()
    status, body, headers = await asked
    assert (status, headers["x-covey-replica"]) == (200, first.name)
    assert said(first.name) in body
    assert headers["x-covey-route"].startswith("round_robin; ")
    await gone(second if second.asked else third)
    assert await counted(url) == (1, 0, 0)


async def test_when_the_budget_is_used_up_it_waits(
    pool: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hedging, "MOST", 1.0)
    url, (slow, well) = await pool(hedge_percent=0.001)
    slow.stalls = True
    assert said(well.name) in (await ask(url))[1]
    assert said(well.name) in (await ask(url))[1]  # its own turn
    asked = asyncio.create_task(ask(url))
    await until(lambda: slow.asked == 2)
    await asyncio.sleep(PAUSE_S)
    assert (asked.done(), well.asked) == (False, 2)
    slow.step.set()
    assert said(slow.name) in (await asked)[1]
    assert await counted(url) == (1, 1, 0)


async def test_it_can_be_switched_off(pool: Made) -> None:
    url, (slow, well) = await pool(hedge_percent=0)
    slow.stalls = True
    asked = asyncio.create_task(ask(url))
    await until(lambda: slow.asked == 1)
    await asyncio.sleep(PAUSE_S)
    assert (asked.done(), well.asked) == (False, 0)
    slow.step.set()
    assert said(slow.name) in (await asked)[1]
    assert await counted(url) == (0, 0, 0)


async def test_it_can_be_switched_on_while_it_runs(upstream: Any, runners: Any) -> None:
    servers = {name: Server(name) for name in "ab"}
    replicas = {name: await upstream(one.answer) for name, one in servers.items()}
    config = Config(replicas=replicas, strategy="round_robin", hedge_percent=0)
    app = make_app(config, None)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    runners.append(runner)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    turns: list[str] = []
    async with asyncio.timeout(LIMIT_S):
        while min(turns.count(name) for name in "ab") < FEW + 1:  # it has to find their model first
            turns.append((await ask(url))[2].get("x-covey-replica", ""))
    new = msgspec.structs.replace(config, hedge_percent=5.0)
    assert app[GATEWAY].reload(new, require_keys=False) == (["hedge_percent"], [])
    slow, well = (servers[name] for name in turns[-2:])
    slow.stalls = True
    assert said(well.name) in (await ask(url))[1]
    await gone(slow)


async def test_the_second_fails_and_the_first_goes_on(pool: Made) -> None:
    url, (slow, sick) = await pool()
    slow.stalls, sick.status = True, 500
    asked = asyncio.create_task(ask(url))
    await until(lambda: sick.asked == 1)
    await asyncio.sleep(PAUSE_S)
    assert not asked.done()
    slow.step.set()
    status, body, _ = await asked
    assert (status, slow.asked, sick.asked) == (200, 1, 1)
    assert said(slow.name) in body


async def test_the_first_fails_and_the_second_goes_on(pool: Made) -> None:
    url, (sick, slow) = await pool()
    sick.stalls = slow.stalls = True
    sick.status = 503
    asked = asyncio.create_task(ask(url))
    await until(lambda: slow.asked == 1)
    sick.step.set()
    await asyncio.sleep(PAUSE_S)
    assert not asked.done()
    slow.step.set()
    status, body, _ = await asked
    assert (status, sick.asked, slow.asked) == (200, 1, 1)
    assert said(slow.name) in body


async def test_both_fail_and_a_third_is_tried(pool: Made) -> None:
    url, servers = await pool(3)
    first = servers[0]
    for one in servers:
        one.stalls = True
    asked = asyncio.create_task(ask(url))
    await until(lambda: sum(one.asked for one in servers) == 2)
    second, third = sorted(servers[1:], key=lambda one: -one.asked)
    third.stalls = False
    for one in (first, second):
        one.status = 500
        one.step.set()
    status, body, headers = await asked
    assert (status, headers["x-covey-replica"]) == (200, third.name)
    assert said(third.name) in body
    assert [one.asked for one in servers] == [1, 1, 1]
    assert await counted(url) == (1, 0, 1)


async def test_both_fail_and_there_is_nobody_else(pool: Made) -> None:
    url, servers = await pool()
    for one in servers:
        one.stalls, one.status = True, 500
    asked = asyncio.create_task(ask(url))
    await until(lambda: sum(one.asked for one in servers) == 2)
    for one in servers:
        one.step.set()
    assert (await asked)[0] == 500
    assert [one.asked for one in servers] == [1, 1]


async def test_the_deadline_ends_both(pool: Made) -> None:
    url, servers = await pool()
    for one in servers:
        one.stalls = True
    status, body, _ = await ask(url, **{"x-covey-deadline-ms": "2000"})
    assert status == 504
    assert "deadline" in json.loads(body)["error"]["message"]
    await gone(*servers)
    assert await counted(url) == (1, 0, 0)


async def test_a_client_that_leaves_ends_both(pool: Made) -> None:
    url, servers = await pool()
    for one in servers:
        one.stalls = True
    asked = asyncio.create_task(ask(url))
    await until(lambda: all(one.asked == 1 for one in servers))
    asked.cancel()
    await gone(*servers)
    assert (await counted(url))[:2] == (1, 0)


async def test_a_request_in_a_dialect_is_translated_anew(pool: Made) -> None:
    url, (slow, well) = await pool()
    slow.stalls = True
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    status, answer, headers = await ask(url, "/api/chat", json.dumps(body).encode())
    assert (status, headers["x-covey-replica"]) == (200, well.name)
    assert json.loads(answer)["message"]["content"] == well.name
    await gone(slow)
