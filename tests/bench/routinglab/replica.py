"""A replica on virtual time: places, prefill one prompt after the other, decoding all at once.

Prefill and decoding slow each other down as in an engine that batches continuously; a prompt's
beginning that is in the cache costs nothing. `speed` is changed by the situation: 0.1 is ten
times slower, 0 stands still.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from routinglab.requests import BLOCK_TOKENS, Request

NEVER = math.inf


@dataclass(frozen=True)
class Law:
    """What a replica's hardware gives: seconds, and seconds for a thousand tokens of prompt."""

    rtt_s: float = 0.002
    step_s: float = 0.02
    prefill_s: float = 0.25
    token_s: float = 0.02
    each_s: float = 0.001
    places: int = 16
    cache_blocks: int = 1500

    def slower(self, times: float) -> Law:
        """Return the same with all of its work so many times slower."""
        return Law(self.rtt_s, self.step_s * times, self.prefill_s * times, self.token_s * times,
                   self.each_s * times, self.places, self.cache_blocks)  # fmt: skip


@dataclass(eq=False)
class Work:
    request: Request
    first: Callable[[], None]
    done: Callable[[], None]
    arrived: float
    rif: int
    left: bool = False


class Server:
    """One replica; `call(at, f)` has f called at that time."""

    def __init__(self, law: Law, random: Random, call: Callable[[float, Callable[[], None]], None]):
        self.law = law
        self.speed = 1.0
        self.refusing = False
        self._random = random
        self._call = call
        self._at = 0.0
        self._queue: deque[Work] = deque()
        self._prefill: deque[Work] = deque()
        self._work_s = 0.0  # what is left of the front prompt's
        self._decoded = 0.0  # tokens that every stream has had since the beginning of time
        self._streams: list[tuple[float, int, Work]] = []
        self._held = 0
        self._count = 0
        self._version = 0
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._seen: deque[tuple[int, float]] = deque(maxlen=100)

    @property
    def in_flight(self) -> int:
        """How many requests are here."""
        return len(self._queue) + self._held

    def estimate_s(self) -> float:
        """Return Prequal's estimate: the median of late answers at a load near the present one."""
        here = self.in_flight
        near = sorted(self._seen, key=lambda seen: abs(seen[0] - here))[:9]
        return sorted(seconds for _, seconds in near)[len(near) // 2] if near else 0.0

    def ask(
        self, request: Request, now: float, first: Callable[[], None], done: Callable[[], None]
    ) -> Work:
        """Take a request; its callbacks come when its first token and its last are there."""
        self._go(now)
        work = Work(request, first, done, now, self.in_flight)
        self._queue.append(work)
        self._admit(now)
        self._plan(now)
        return work

    def leave(self, work: Work, now: float) -> None:
        """Give up a request whose client has left."""
        self._go(now)
        if work.left:
            return
        work.left = True
        if work in self._queue:
            self._queue.remove(work)
        elif work in self._prefill:
            front = self._prefill[0] is work
            self._prefill.remove(work)
            self._held -= 1
            if front:
                self._start()
        else:
            self._streams = [entry for entry in self._streams if entry[2] is not work]
            heapq.heapify(self._streams)
            self._held -= 1
        self._admit(now)
        self._plan(now)

    def set_speed(self, speed: float, now: float) -> None:
        """Change how fast everything here goes."""
        self._go(now)
        self.speed = speed
        self._plan(now)

    def _rates(self) -> tuple[float, float]:
        """Return seconds of prefill work done in a second, and tokens a second of each stream."""
        streams = len(self._streams)
        prefill = self.speed / (1 + 0.03 * streams)
        token_s = self.law.token_s + self.law.each_s * streams
        return prefill, self.speed / (token_s * (1.5 if self._prefill else 1.0))

    def _go(self, now: float) -> None:
        prefill, decode = self._rates()
        self._work_s -= (now - self._at) * prefill if self._prefill else 0.0
        self._decoded += (now - self._at) * decode
        self._at = now

    def _admit(self, now: float) -> None:
        while self._queue and self._held < self.law.places:
            work = self._queue.popleft()
            self._held += 1
            self._prefill.append(work)
            if len(self._prefill) == 1:
                self._start()

    def _start(self) -> None:
        """Begin the front prompt."""
        if not self._prefill:
            return
        request = self._prefill[0].request
        cached = 0
        for block in request.blocks:
            if block not in self._cache:
                break
            cached += 1
        uncached = max(request.tokens - cached * BLOCK_TOKENS, 1)
        noise = math.exp(self._random.gauss(0.0, 0.08))
        self._work_s = (self.law.step_s + self.law.prefill_s * uncached / 1000) * noise
        for block in reversed(request.blocks):
            self._cache.pop(block, None)
            self._cache[block] = None
        while len(self._cache) > self.law.cache_blocks:
            self._cache.popitem(last=False)

    def _plan(self, now: float) -> None:
        prefill, decode = self._rates()
        at = NEVER
        if self._prefill and prefill:
            at = now + max(self._work_s, 0.0) / prefill
        if self._streams and decode:
            at = min(at, now + max(self._streams[0][0] - self._decoded, 0.0) / decode)
        self._version += 1
        if at < NEVER:
            version = self._version
            self._call(at, lambda: self._wake(version, at))

    def _wake(self, version: int, now: float) -> None:
        if version != self._version:
            return
        self._go(now)
        if self._prefill and self._work_s <= 1e-9:
            work = self._prefill.popleft()
            self._count += 1
            end = self._decoded + work.request.answer_tokens
            heapq.heappush(self._streams, (end, self._count, work))
            self._start()
            self._seen.appendleft((work.rif, now - work.arrived))
            work.first()
        while self._streams and self._streams[0][0] <= self._decoded + 1e-6:
            work = heapq.heappop(self._streams)[2]
            work.left = True
            self._held -= 1
            work.done()
        self._admit(now)
        self._plan(now)
