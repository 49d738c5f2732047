"""Let requests through as the admission queues say, and keep the others waiting.

A shell around `admission.py`, used by `proxy.py`: one queue for each model that has requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.admission import Admission, Place, State
from gateway.errors import ApiError


class Gate:
    """`most_waiting` requests of a model wait at most, none of them longer than `longest_s`."""

    def __init__(self, most_waiting: int, longest_s: float) -> None:
        self._most_waiting = most_waiting
        self._longest_s = longest_s
        self._queues: dict[str, Admission] = {}
        self._woken: dict[Place, asyncio.Event] = {}

    async def enter(
        self, model: str, client: str, priority: int, until: float, limit: Callable[[], int],
        weight: float = 1.0,
    ) -> Place:  # fmt: skip
        """Return a place of the model, to be left; `until` is on the clock of time.monotonic.

        Raises ApiError: 429 when the queue is full, 503 after `longest_s`, 504 at `until`.
        """
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = Admission(self._most_waiting)
        place = queue.ask(client, time.monotonic(), limit(), priority, weight)
        if place.state is State.RUNNING:
            self._tell(queue)
            return place
        try:
            await self._wait(queue, place, until)
        except BaseException:
            self.leave(model, place, limit)
            raise
        return place

    def leave(self, model: str, place: Place, limit: Callable[[], int]) -> None:
        """Give a place back."""
        queue = self._queues.get(model)
        if queue is None:  # the place was refused, and all others are gone since
            return
        queue.leave(place, time.monotonic(), limit())
        self._tell(queue)
        if not queue.running and not queue.waiting:
            del self._queues[model]

    def free(self, model: str) -> bool:
        """Say whether no request of the model waits for its turn."""
        queue = self._queues.get(model)
        return queue is None or not queue.waiting

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return sum(queue.waiting for queue in self._queues.values())

    async def _wait(self, queue: Admission, place: Place, until: float) -> None:
        begun = time.monotonic()
        woken = self._woken[place] = asyncio.Event()
        self._tell(queue)
        try:
            async with asyncio.timeout(min(self._longest_s, max(until - begun, 0.0))):
                await woken.wait()
        except TimeoutError:
            now = time.monotonic()
            if now >= until:
                raise ApiError(
                    "The request's deadline passed while it waited for a place", status=504,
                    reason="deadline",
                    hint="Give it longer with x-covey-deadline-ms.",
                ) from None  # fmt: skip
            raise ApiError(
                f"No place was free within {self._longest_s:.0f} s; {queue.waiting} requests wait",
                status=503,
                hint="Try again later.",
                reason="queue_wait",
                retry_after_s=queue.retry_after_s(now),
            ) from None
        finally:
            del self._woken[place]
        if place.state is State.REFUSED:
            raise ApiError(
                f"Too many requests wait already ({queue.waiting})",
                status=429,
                hint="Try again later, or with fewer requests at once.",
                code="rate_limit_exceeded",
                reason="queue_full",
                retry_after_s=queue.retry_after_s(time.monotonic()),
            )

    def _tell(self, queue: Admission) -> None:
        for place in queue.changed():
            if woken := self._woken.get(place):
                woken.set()
