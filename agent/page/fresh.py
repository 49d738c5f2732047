"""One answer for all who ask at about the same time. A shell, used by both who serve the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Fresh(Generic[T]):
    """What `ask` returns, `fresh_s` seconds old at most; while it is asked, others wait for it."""

    def __init__(self, ask: Callable[[], Awaitable[T]], fresh_s: float) -> None:
        self._ask = ask
        self._fresh_s = fresh_s
        self._asking = asyncio.Lock()
        self._known: tuple[float, T] | None = None

    async def get(self) -> T:
        """Return it; raises what `ask` raises, which nobody else is told then."""
        async with self._asking:
            if self._known is None or time.monotonic() - self._known[0] >= self._fresh_s:
                answer = await self._ask()
                self._known = (time.monotonic(), answer)
            return self._known[1]
