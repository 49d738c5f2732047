"""Strategies, deadlines, shares and reasons as clients of a running gateway see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway import proxy

PATH = "/v1/chat/completions"
BODY = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
USAGE = b'{"usage":{"prompt_tokens":4,"completion_tokens":1}}'
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def post(url: str, body: bytes = BODY, **headers: str) -> tuple[int, str, Any]:
    """Return (status, body, headers) of a POST."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + PATH, data=body, headers=named) as answer,
    ):
        return answer.status, await answer.text(), answer.headers


def message(text: str) -> str:
    return str(json.loads(text)["error"]["message"])


async def fine(_: web.Request) -> web.Response:
    return web.Response(body=USAGE)


class Held:
    """A handler that answers when it is told to, and knows who asks in which order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.places = asyncio.Semaphore(0)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.headers.get("Authorization", ""))
        await self.places.acquire()
        return web.Response(body=USAGE)


@pytest.fixture
async def tasks() -> AsyncIterator[Callable[[Any], asyncio.Task[Any]]]:
    made: list[asyncio.Task[Any]] = []

    def start(what: Any) -> asyncio.Task[Any]:
        made.append(asyncio.create_task(what))
        return made[-1]

    yield start
    for task in made:
        task.cancel()
    await asyncio.gather(*made, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is watched has no event to wait for
            await asyncio.sleep(0.005)


async def test_the_route_is_told_and_grows_with_what_is_known(
    upstream: Any, gateway: Any, head: Any
) -> None:
    url = await gateway(head("a", await upstream(fine)), head("b", await upstream(fine)))
    _, _, headers = await post(url)
    assert headers["x-covey-route"] == "latency_aware; not measured yet; 2 of 2 usable"
    long = b'{"model":"m","prompt":"%s"}' % (b"word " * 300)
    for _ in range(12):
        _, _, headers = await post(url, long, x_covey_session="s")
    route = headers["x-covey-route"]
    assert route.startswith("latency_aware; predicted 0.0")
    assert "s to the answer; prefix " in route
    assert route.endswith("tokens cached; same session; 2 of 2 usable")


async def test_other_apis_are_routed_by_the_same_rules(
    upstream: Any, gateway: Any, head: Any
) -> None:
    async def chat(_: web.Request) -> web.Response:
        message = {"role": "assistant", "content": "Hi"}
        return web.json_response(
            {"id": "1", "choices": [{"message": message, "finish_reason": "stop"}],
             "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
        )  # fmt: skip

    url = await gateway(head("a", await upstream(chat)))
    body = b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"%s"}]}'
    async with aiohttp.ClientSession() as session:

        async def ask(**headers: str) -> tuple[int, Any]:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            async with session.post(
                url + "/v1/messages", data=body % (b"hello " * 300), headers=named
            ) as answer:
                await answer.read()
                return answer.status, answer.headers

        for _ in range(8):
            status, headers = await ask(x_covey_session="s")
            assert status == 200
        assert "tokens cached; same session; 1 of 1 usable" in headers["x-covey-route"]
        assert (await ask(x_covey_deadline_ms="0"))[0] == 504
        assert (await ask(x_covey_strategy="best"))[0] == 400


async def test_a_strategy_for_one_request(upstream: Any, gateway: Any, head: Any) -> None:
    url = await gateway(head("a", await upstream(fine)), head("b", await upstream(fine)))
    seen = [
        (await post(url, x_covey_strategy="round_robin"))[2]["x-covey-replica"] for _ in range(4)
    ]
    assert sorted(seen) == ["a", "a", "b", "b"]
    status, body, headers = await post(url, x_covey_strategy="best")
    assert status == 400
    assert "Use one of latency_aware, round_robin, least_loaded" in message(body)
    assert "x-covey-route" not in headers


async def test_a_server_that_lacks_an_endpoint_is_left_out_of_it(
    upstream: Any, gateway: Any, head: Any
) -> None:
    async def lacking(_: web.Request) -> web.Response:
        return web.Response(status=501, body=b"{}")

    url = await gateway(
        head("lacks", await upstream(lacking)), head("has", await upstream(fine)),
        strategy="round_robin",
    )  # fmt: skip
    answers = [await post(url) for _ in range(4)]
    assert [(status, headers["x-covey-replica"]) for status, _, headers in answers] == [
        (200, "has")
    ] * 4


async def test_a_deadline_that_passes_ends_the_attempt(
    upstream: Any, gateway: Any, head: Any, tasks: Any
) -> None:
    held = Held()
    url = await gateway(head("a", await upstream(held.answer)))
    status, body, _ = await post(url, x_covey_deadline_ms="100")
    assert (status, message(body)) == (504, "a did not answer before the request's deadline.")
    held.places.release()
    assert (await post(url, x_covey_deadline_ms="9000"))[0] == 200
    status, body, _ = await post(url, x_covey_deadline_ms="0")
    assert (status, len(held.asked)) == (504, 2)
    assert "deadline has passed" in message(body)


async def test_a_deadline_bounds_the_first_byte_and_not_the_rest(
    upstream: Any, gateway: Any, head: Any
) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.sleep(0.4)
        await response.write(b"data: 2\n\n")
        return response

    url = await gateway(head("a", await upstream(slow)))
    status, body, _ = await post(url, x_covey_deadline_ms="200")
    assert (status, body) == (200, "data: 1\n\ndata: 2\n\n")


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(
    upstream: Any, gateway: Any, head: Any
) -> None:
    asked = []

    async def slow(request: web.Request) -> web.Response:
        asked.append(1)
        await asyncio.sleep(0.2)
        return web.Response(body=USAGE)

    url = await gateway(head("a", await upstream(slow)))
    for _ in range(6):
        await post(url)
    status, body, headers = await post(url, x_covey_deadline_ms="50")
    assert (status, len(asked), headers["Retry-After"]) == (503, 6, "1")
    assert "The deadline cannot be met: 0.0" in message(body)
    assert "s are left, and the first byte is predicted after 0.2" in message(body)


async def test_places_are_shared_fairly_between_keys(
    upstream: Any, gateway: Any, head: Any, tasks: Any
) -> None:
    held = Held()
    url = await gateway(head("a", await upstream(held.answer)), per_replica=2)
    greedy = [tasks(post(url, Authorization="greedy")) for _ in range(6)]
    await until(lambda: len(held.asked) == 2)
    await asyncio.sleep(0.1)
    modest = tasks(post(url, Authorization="modest"))
    await asyncio.sleep(0.1)
    assert len(held.asked) == 2
    held.places.release()
    await until(lambda: len(held.asked) == 3)
    assert held.asked[-1] == "modest"
    for _ in range(10):
        held.places.release()
    assert {(await task)[0] for task in (*greedy, modest)} == {200}


async def test_a_full_queue_is_429_and_a_long_wait_503(
    upstream: Any, gateway: Any, head: Any, tasks: Any
) -> None:
    held = Held()
    url = await gateway(
        head("a", await upstream(held.answer)), per_replica=1, queue=1, queue_wait_s=0.3
    )
    running = tasks(post(url))
    await until(lambda: len(held.asked) == 1)
    waiting = tasks(post(url))
    await asyncio.sleep(0.1)
    status, body, headers = await post(url)
    assert (status, headers["Retry-After"]) == (429, "5")
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
    assert "Too many requests wait already (1)" in message(body)
    status, body, headers = await waiting
    assert status == 503
    assert "No place was free within 0 s" in message(body)
    held.places.release()
    assert (await running)[0] == 200
    held.places.release()
    assert (await post(url))[0] == 200  # nothing of all that holds a place


async def test_a_deadline_counts_in_the_queue_and_a_client_that_leaves_it_frees_its_place(
    upstream: Any, gateway: Any, head: Any, tasks: Any
) -> None:
    held = Held()
    url = await gateway(head("a", await upstream(held.answer)), per_replica=1)
    running = tasks(post(url))
    await until(lambda: len(held.asked) == 1)
    status, body, _ = await post(url, x_covey_deadline_ms="80")
    assert (status, "while it waited for a place" in message(body)) == (504, True)
    left = asyncio.create_task(post(url))
    await asyncio.sleep(0.1)
    left.cancel()
    await asyncio.sleep(0.1)
    last = tasks(post(url))
    for _ in range(2):
        held.places.release()
    assert ((await running)[0], (await last)[0], len(held.asked)) == (200, 200, 2)


async def test_when_the_budget_for_retries_is_spent_a_refusal_is_the_answer(
    upstream: Any, gateway: Any, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "RETRIES_MOST", 0.0)

    async def refusing(_: web.Request) -> web.Response:
        return web.Response(status=500, body=b"no")

    url = await gateway(
        head("a", await upstream(refusing)), head("b", await upstream(fine)), strategy="round_robin"
    )
    assert {(await post(url))[0] for _ in range(5)} == {200, 500}
