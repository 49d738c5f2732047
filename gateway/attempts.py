"""Until the first byte: one attempt, or two of which the sooner wins, within the deadline.

A shell, used by `proxy.py`. The first attempt runs in the request's own task, which costs nothing
more than a timer; the second, where `hedging.py` says so, in a task of its own. The one that loses
is cancelled, which closes its connection and frees its ring.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.ask import Ask, AttemptFailedError
from gateway.attached import RECORD
from gateway.errors import ApiError
from gateway.hedging import Hedge
from gateway.routing import Picked, Router
from gateway.upstream import Begun, Upstream

_log = logging.getLogger(__name__)


class Attempts:
    """Attempts up to their first byte; see `upstream.py` for what is raised."""

    def __init__(self, router: Router, upstream: Upstream) -> None:
        self._router = router
        self._upstream = upstream

    async def begin(
        self, ask: Ask, picked: Picked, hedge: Hedge | None, again: Callable[[], Awaitable[Ask]]
    ) -> Begun:
        """Return the attempt whose first byte is there, which the caller passes on.

        `again` makes the request for a second attempt. Raises AttemptFailedError when all that
        were sent have failed, or ApiError when it is too late.
        """
        if ask.until == math.inf:
            return await self._begin(ask, picked, hedge, again)
        begun = None
        bound = asyncio.timeout(max(ask.until - time.monotonic(), 0.0))
        try:
            async with bound:
                begun = await self._begin(ask, picked, hedge, again)
                if bound.expired():
                    await asyncio.sleep(0)  # where the cancellation that is on its way arrives
                return begun
        except BaseException as error:
            if begun is not None:
                self._upstream.give_up(begun)
            if not bound.expired() or not isinstance(error, TimeoutError):
                raise
        raise ApiError(
            f"{picked.replica.name} did not answer before the request's deadline",
            status=504,
            reason="deadline",
        )

    async def _begin(
        self, ask: Ask, picked: Picked, hedge: Hedge | None, again: Callable[[], Awaitable[Ask]]
    ) -> Begun:
        if hedge is None:
            return await self._upstream.begin(ask, picked)
        return await _Race(self._router, self._upstream, ask, hedge, again).run(picked)


class _Race:
    """One request at two replicas, if need be; for one `run` in the request's task."""

    def __init__(
        self, router: Router, upstream: Upstream, ask: Ask, hedge: Hedge,
        again: Callable[[], Awaitable[Ask]],
    ) -> None:  # fmt: skip
        self._router = router
        self._upstream = upstream
        self._ask = ask
        self._hedge = hedge
        self._again = again
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._second: asyncio.Task[Begun] | None = None
        self._waiting: asyncio.Task[Any] | None = None  # for the first, which may be interrupted
        self._interrupted = False

    async def run(self, first: Picked) -> Begun:
        begun = None
        try:
            begun = await self._sooner(first)
            return begun
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._second is not None:
                self._dispose(self._second, begun)
                # What is passed on does not wait for the other's end, which is near.
                if begun is None and not self._second.done():
                    await asyncio.wait({self._second})

    async def _sooner(self, first: Picked) -> Begun:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in one
        cancelling = task.cancelling()
        self._look()
        self._waiting = task
        try:
            begun = await self._upstream.begin(self._ask, first)
        except BaseException as error:
            self._waiting = None
            second = self._second
            if self._interrupted and second is not None and task.uncancel() <= cancelling:
                self._router.outrun(first.attempt, time.monotonic())
                return self._won(second.result())
            failed = isinstance(error, AttemptFailedError | ApiError)
            if not failed or second is None or second.done():
                raise
            return self._won(await second)
        self._waiting = None
        if self._interrupted:  # and something took the interruption for its own
            task.uncancel()
        return begun

    def _look(self) -> None:
        found = self._hedge.look(time.monotonic())
        if isinstance(found, Picked):
            self._ask.request[RECORD].hedge = "sent"
            self._second = self._loop.create_task(self._ask_second(found))
            self._second.add_done_callback(self._second_ended)
        elif found < math.inf:
            self._timer = self._loop.call_later(found, self._look)

    async def _ask_second(self, picked: Picked) -> Begun:
        return await self._upstream.begin(await self._again(), picked)

    def _second_ended(self, second: asyncio.Task[Begun]) -> None:
        if second.cancelled():
            return
        error = second.exception()
        if isinstance(error, AttemptFailedError | ApiError):
            _log.warning("hedge failed model=%s reason=%s", self._ask.model, error)
        elif error is not None:
            _log.error("internal error in a hedge", exc_info=error)
        elif self._waiting is not None:
            self._interrupted = True
            self._waiting.cancel()

    def _won(self, begun: Begun) -> Begun:
        self._ask.request[RECORD].hedge = "won"
        return begun

    def _dispose(self, second: asyncio.Task[Begun], kept: Begun | None) -> None:
        """End the second, unless its answer is the one that is passed on."""

        def drop(second: asyncio.Task[Begun]) -> None:
            if not second.cancelled() and not second.exception() and second.result() is not kept:
                self._upstream.give_up(second.result())

        second.cancel()
        second.add_done_callback(drop)
