"""Others' ways to choose, written small after their descriptions.

* round robin, least connections, power of two choices (Mitzenmacher 2001) by requests in flight;
* peak EWMA: Finagle's and Linkerd's load balancer, decay 10 s, power of two; its latency is the
  time to the first byte, as in a proxy that streams;
* Prequal (Wydrowski and others, NSDI 2024): three probes for each request, a pool of 16, hot-cold
  lexicographic rule with the 0.84 quantile of requests in flight, probes older than a second are
  thrown away, a used probe counts one request more, the oldest and the worst leave in turn; and its
  synchronous mode, in which a request waits for its own probes (here they take no time): with few
  replicas and few requests a second that serves it better.

All of them leave a replica out after five 5xx in a row, for 30 s times how often that came, at
most half of them at a time: Envoy's outlier detection as shipped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from routinglab.requests import Request

EJECT_AFTER, EJECT_S = 5, 30.0
DECAY_S = 10.0
# Finagle's penalty for one that has requests and no latency yet.
PENALTY = 1e6
POOL, PROBES, OLD_S, HOT = 16, 3, 1.0, 2**-0.25


class Chooser(Protocol):
    """A way to choose; replicas are numbers, `now` is virtual."""

    def choose(self, request: Request, now: float, without: frozenset[int]) -> int | None:
        """Return the replica, None if there is none."""

    def look(self, request: Request, now: float) -> tuple[int | None, float]:
        """Return a second replica for a request that waits, or in how many seconds to ask again."""

    def begin(self, replica: int, request: Request, now: float) -> None:
        """Note that the request goes there."""

    def first(self, replica: int, request: Request, seconds: float, now: float) -> None:
        """Note its first byte."""

    def outrun(self, replica: int, request: Request, now: float) -> None:
        """Note that it has left, as the second replica was sooner."""

    def told(self, replica: int, there: int, now: float) -> None:
        """Note that the replica says how many requests are there."""

    def failed(self, replica: int, request: Request, now: float) -> None:
        """Note a 503."""

    def end(self, replica: int, request: Request, whole: bool, now: float) -> None:
        """Note that it has left, with a whole answer or not."""


class Probe(Protocol):
    """Ask a replica for its requests in flight and its latency, by messages or at once."""

    def __call__(
        self, replica: int, answered: Callable[[int, float], None], at_once: bool = False
    ) -> None: ...


class Peer(ABC):
    """What they share: requests in flight, and outlier detection."""

    def __init__(self, count: int, random: Random, probe: Probe) -> None:
        self.count = count
        self.random = random
        self.probe = probe
        self.in_flight = [0] * count
        self._faults = [0] * count
        self._ejected = [0] * count
        self._until = [-math.inf] * count

    def choose(self, request: Request, now: float, without: frozenset[int]) -> int | None:
        out = [r for r in range(self.count) if now < self._until[r]]
        out = out[: self.count // 2]
        there = [r for r in range(self.count) if r not in without and r not in out]
        there = there or [r for r in range(self.count) if r not in without]
        return self.pick(there, now) if there else None

    @abstractmethod
    def pick(self, there: Sequence[int], now: float) -> int: ...

    def look(self, request: Request, now: float) -> tuple[int | None, float]:
        return None, math.inf

    def begin(self, replica: int, request: Request, now: float) -> None:
        self.in_flight[replica] += 1

    def first(self, replica: int, request: Request, seconds: float, now: float) -> None:
        self._faults[replica] = 0

    def outrun(self, replica: int, request: Request, now: float) -> None:
        self.end(replica, request, False, now)

    def told(self, replica: int, there: int, now: float) -> None:  # noqa: B027
        """None of them asks for it, but Prequal, which has its probes."""

    def failed(self, replica: int, request: Request, now: float) -> None:
        self._faults[replica] += 1
        if self._faults[replica] >= EJECT_AFTER:
            self._faults[replica] = 0
            self._ejected[replica] += 1
            self._until[replica] = now + EJECT_S * self._ejected[replica]

    def end(self, replica: int, request: Request, whole: bool, now: float) -> None:
        self.in_flight[replica] -= 1


class RoundRobin(Peer):
    turn = -1

    def pick(self, there: Sequence[int], now: float) -> int:
        self.turn += 1
        while self.turn % self.count not in there:
            self.turn += 1
        return self.turn % self.count


class LeastConnections(Peer):
    def pick(self, there: Sequence[int], now: float) -> int:
        return min(there, key=lambda r: (self.in_flight[r], self.random.random()))


class PowerOfTwo(Peer):
    def pick(self, there: Sequence[int], now: float) -> int:
        two = self.random.sample(there, min(2, len(there)))
        return min(two, key=lambda r: self.in_flight[r])


class PeakEwma(Peer):
    def __init__(self, count: int, random: Random, probe: Probe) -> None:
        super().__init__(count, random, probe)
        self._cost = [0.0] * count
        self._stamp = [0.0] * count

    def _observe(self, replica: int, seconds: float, now: float) -> None:
        keep = math.exp(-(now - self._stamp[replica]) / DECAY_S)
        before = self._cost[replica]
        # A peak counts at once and is forgotten slowly.
        self._cost[replica] = seconds if seconds > before else before * keep + seconds * (1 - keep)
        self._stamp[replica] = now

    def _load(self, replica: int, now: float) -> float:
        self._observe(replica, 0.0, now)
        cost, pending = self._cost[replica], self.in_flight[replica]
        return PENALTY + pending if cost == 0.0 and pending else cost * (pending + 1)

    def pick(self, there: Sequence[int], now: float) -> int:
        two = self.random.sample(there, min(2, len(there)))
        return min(two, key=lambda r: self._load(r, now))

    def first(self, replica: int, request: Request, seconds: float, now: float) -> None:
        super().first(replica, request, seconds, now)
        self._observe(replica, seconds, now)


@dataclass
class _Probed:
    replica: int
    in_flight: int
    seconds: float
    at: float


class Prequal(Peer):
    def __init__(self, count: int, random: Random, probe: Probe) -> None:
        super().__init__(count, random, probe)
        self._pool: list[_Probed] = []
        self._loads: list[int] = []
        self._now = 0.0
        self._oldest_next = True

    def _answered(self, replica: int, in_flight: int, seconds: float) -> None:
        self._pool.append(_Probed(replica, in_flight, seconds, self._now))
        self._loads = [*self._loads[-127:], in_flight]
        if len(self._pool) > POOL:
            self._pool.remove(min(self._pool, key=lambda p: p.at))

    def _hot_above(self) -> float:
        loads = sorted(self._loads)
        return loads[min(int(HOT * len(loads)), len(loads) - 1)] if loads else math.inf

    def pick(self, there: Sequence[int], now: float) -> int:
        self._now = now
        for replica in self.random.sample(range(self.count), min(PROBES, self.count)):
            self.probe(replica, lambda load, s, at=replica: self._answered(at, load, s))
        self._pool = [p for p in self._pool if now - p.at <= OLD_S]
        offered = [p for p in self._pool if p.replica in there]
        if len(offered) < 2:
            return self.random.choice(list(there))
        bound = self._hot_above()
        cold = [p for p in offered if p.in_flight <= bound]
        chosen = (
            min(cold, key=lambda p: (p.seconds, p.in_flight))
            if cold
            else min(offered, key=lambda p: p.in_flight)
        )
        chosen.in_flight += 1
        self._remove(bound)
        return chosen.replica

    def _remove(self, bound: float) -> None:
        if self._oldest_next:
            worst = min(self._pool, key=lambda p: p.at)
        else:
            hot = [p for p in self._pool if p.in_flight > bound]
            worst = (
                max(hot, key=lambda p: p.in_flight)
                if hot
                else max(self._pool, key=lambda p: p.seconds)
            )
        self._oldest_next = not self._oldest_next
        self._pool.remove(worst)


class SynchronousPrequal(Prequal):
    def pick(self, there: Sequence[int], now: float) -> int:
        self._pool = []
        self._now = now
        probed = self.random.sample(there, min(PROBES, len(there)))
        for replica in probed:
            self.probe(replica, lambda load, s, at=replica: self._answered(at, load, s), True)
        if not self._pool:
            return self.random.choice(probed)
        bound = self._hot_above()
        cold = [p for p in self._pool if p.in_flight <= bound]
        if cold:
            return min(cold, key=lambda p: (p.seconds, p.in_flight)).replica
        return min(self._pool, key=lambda p: p.in_flight).replica


PEERS: dict[str, type[Peer]] = {
    "round robin": RoundRobin,
    "least connections": LeastConnections,
    "power of two": PowerOfTwo,
    "peak EWMA": PeakEwma,
    "Prequal": Prequal,
    "Prequal, synchronous": SynchronousPrequal,
}
