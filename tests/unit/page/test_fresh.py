"""One answer for all who ask at about the same time."""

from __future__ import annotations

import asyncio

import pytest

from agent.page.fresh import Fresh


class Counting:
    def __init__(self) -> None:
        self.asked = 0
        self.fault: Exception | None = None

    async def __call__(self) -> int:
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.fault is not None:
            raise self.fault
        return self.asked


async def test_all_who_ask_at_once_get_one_answer() -> None:
    ask = Counting()
    fresh = Fresh(ask, 60.0)
    assert await asyncio.gather(*(fresh.get() for _ in range(5))) == [1] * 5
    assert await fresh.get() == 1
    assert ask.asked == 1


async def test_an_old_answer_is_asked_for_anew() -> None:
    fresh = Fresh(Counting(), 0.0)
    assert [await fresh.get(), await fresh.get()] == [1, 2]


async def test_a_fault_is_not_kept() -> None:
    ask = Counting()
    fresh = Fresh(ask, 60.0)
    ask.fault = RuntimeError("away")
    with pytest.raises(RuntimeError):
        await fresh.get()
    ask.fault = None
    assert await fresh.get() == 2
