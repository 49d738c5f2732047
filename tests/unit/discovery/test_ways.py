"""Discovery and the overlay: sleeping members are left alone, underlay addresses are kept."""

from __future__ import annotations

import asyncio
from typing import Any

from agent.discovery.ways import Ways


async def test_a_member_that_sleeps_is_asked_nothing_over_the_overlay(mesh: Any) -> None:
    asleep: set[str] = set()
    # Any host is loopback here; this one stands for an address in the overlay.
    inside = "127.0.0.9"
    ways = Ways(inside=lambda host: host == inside, asleep=asleep.__contains__)
    first = await mesh.add(listen=("0.0.0.0", 0))
    second = await mesh.add(listen=("0.0.0.0", 0), ways=ways)
    node, over = mesh.keys[0].id, (inside, first.port)
    assert await second.ping(node, over) is not None
    assert dict(second.contacts())[node][0] == "127.0.0.1", "the underlay's address stays"
    asked = first.counters["question_ping"]
    asleep.add(inside)
    began = asyncio.get_running_loop().time()
    assert await second.ping(node, over) is None
    assert asyncio.get_running_loop().time() - began < 0.2, "there is nothing to wait for"
    assert first.counters["question_ping"] == asked
    assert await second.ping(node) is not None, "it is there all the same"
