"""A head says how many requests are there: with each answer, and in /health."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

HELLO = [{"role": "user", "content": "hello"}]
WHOLE = {"model": "covey-mini", "messages": HELLO}
STREAM = WHOLE | {"stream": True}
PATH = "/v1/chat/completions"


async def running(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url + "/health") as answer:
        assert "x-covey-load" not in answer.headers
        return int((await answer.json())["running"])


async def test_every_answer_says_how_many_requests_are_there(serve: Any, scripted: Any) -> None:
    step = asyncio.Event()
    url = await serve(scripted([b"a", step, b"b"]))
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        first = await session.post(url + PATH, json=STREAM)
        assert first.headers["x-covey-load"] == "1"
        second = asyncio.create_task(session.post(url + PATH, json=WHOLE))  # it waits its turn
        while await running(session, url) < 2:
            pass
        async with session.post(url + PATH, json=WHOLE | {"temperature": -1}) as refused:
            assert (refused.status, refused.headers["x-covey-load"]) == (400, "3")
        step.set()
        await first.read()
        answer = await second
        assert answer.headers["x-covey-load"] == "1"
        assert (await answer.json())["choices"][0]["message"]["content"] == "ab"
        assert await running(session, url) == 0
