"""Two gateways before one head: each knows what the other has there."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

PATH = "/v1/chat/completions"
ASK = {"model": "covey-mini", "messages": [{"role": "user", "content": "hi"}], "stream": True}


async def others(session: aiohttp.ClientSession, url: str) -> float:
    async with session.get(url + "/gateway/status") as answer:
        (replica,) = (await answer.json())["replicas"]
        return float(replica["others_in_flight"])


async def test_what_another_gateway_has_at_a_head_is_known_and_not_told_to_clients(
    serve: Any, scripted: Any, gateway: Any, head: Any
) -> None:
    step = asyncio.Event()
    address = await serve(scripted([b"a", step, b"b"]))
    one, other = [await gateway(head("a", address, "covey-mini")) for _ in range(2)]
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        async with session.post(one + PATH, json=ASK) as answer:
            assert (answer.status, answer.headers["x-covey-replica"]) == (200, "a")
            assert "x-covey-load" not in answer.headers
            while await others(session, other) < 0.5:
                pass
            assert await others(session, one) < 0.5
            step.set()
            await answer.read()
        while await others(session, other) > 0:
            pass
