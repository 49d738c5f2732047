"""What is known of one replica: its checks, its faults, its speed, and what it works on.

A core, used by `router.py` alone.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import islice
from typing import Any

from gateway.routing.breaker import Breaker, State
from gateway.routing.others import Others
from gateway.routing.prediction import Prediction, load
from gateway.routing.prefixes import Prefixes, covered_bytes
from gateway.routing.replicas import Attempt, Fault, Need, Replica

# So many of those that wait longest tell whether a replica is overdue.
OLDEST = 4
# Slow for the breaker: so many times what the others would have taken, and by so much.
SLOW = 8.0
SLOW_S = 1.0
# The nearest way is the least of the last checks, some half a minute of them.
CHECKS = 32
# An endpoint that a server said it has not may come with its next release.
LACKS_S = 60.0
# Prompts differ by a factor of 1.5 before it says anything whether their beginning was cached.
_TELLING = 1.5
# What came so little sooner than without any cache was not cached, and is no proof of speed.
_MISSED = 0.5


class Learned:
    """One replica. `now` is what it always is here."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.models = replica.models
        self.seeing: frozenset[str] = frozenset()  # those that say that they take more than text
        self.check: bool | None = None
        self.said = "not checked yet"  # by its last check, or by its last fault
        self.breaker = Breaker()
        self.prediction = Prediction()
        self.prefixes = Prefixes()
        self.in_flight = 0
        self.others = Others()
        self.chosen_last = 0
        self.requests = 0
        self._checks_s: deque[float] = deque(maxlen=CHECKS)
        self._lacks: dict[str, float] = {}
        # The requests without a first byte, the oldest first, and what they have to be read.
        self._waiting: dict[Attempt, None] = {}
        self._waiting_k = 0.0
        self._front_since = -math.inf
        self._answered_at = -math.inf
        self._samples: list[tuple[Attempt, float, float]] = []

    def usable(self, now: float) -> bool:
        """Say whether a request may go there: its last check did not fail, it does not cool."""
        return self.check is not False and self.breaker.state(now) is not State.OPEN

    @property
    def up(self) -> bool:
        """Whether it is there and ready as far as known, and at most refuses some requests."""
        return self.check is not False and self.breaker.cooling_for is not Fault.UNREACHABLE

    @property
    def rtt_s(self) -> float | None:
        """The round trip to it over the network, None before a check has passed."""
        return min(self._checks_s, default=None)

    def there(self, now: float) -> float:
        """Return how many requests are there, ours and others'."""
        return self.in_flight + self.others.at(now) if self.others.known else self.in_flight

    def checked_in(self, seconds: float) -> None:
        """Note how long a passed check took."""
        self._checks_s.append(seconds)

    def lacks(self, kind: str, now: float) -> None:
        """Note that it said it does not serve this kind of request."""
        self._lacks[kind] = now

    def serves(self, kind: str, now: float) -> bool:
        """Say whether it serves this kind of request, as far as known."""
        if kind and self.replica.kinds:
            return kind in self.replica.kinds
        return now - self._lacks.get(kind, -math.inf) >= LACKS_S

    def sees(self, model: str) -> bool:
        """Say whether its model takes more than text, as far as it or the operator tells."""
        return self.replica.vision or model in self.seeing

    def holds(self, tokens: float) -> bool:
        """Say whether its context is long enough for a request of so many tokens."""
        return self.replica.context is None or tokens <= self.replica.context

    def attempt(self, need: Need, tokens: float, now: float, ordinary: float | None) -> Attempt:
        """Return the request as it would be here; `tokens` has its prompt."""
        made = Attempt(self.replica.url, need, now, prompt_tokens=tokens)
        if need.prefix and need.prompt_bytes:
            matched = covered_bytes(self.prefixes.matched(need.prefix, now))
            share = min(matched / need.prompt_bytes, 1.0)
            made.cached_tokens = tokens * share * self.prefixes.trust
        ahead_k = self._ahead_k(need.streamed, now)
        made.load = load(made.uncached_ktokens, ahead_k, self.there(now))
        made.predicted_s = self.prediction.first_s(need.streamed, made.load, now, ordinary)
        made.late_s = max(self.late_s(now), 0.0)
        return made

    def late_s(self, now: float) -> float:
        """Return by how many seconds an answer is overdue: whoever comes next waits longer."""
        oldest = islice(self._waiting, OLDEST)
        return max((now - self.due_at(attempt) for attempt in oldest), default=0.0)

    def due_at(self, attempt: Attempt) -> float:
        """Return when a request's first byte is overdue, as far as it has waited here."""
        since = attempt.begun
        if not attempt.need.streamed:
            # Its answer may just be long: as long as others are answered, nothing stands still.
            since = max(since, self._answered_at)
        return since + self.prediction.due_s(attempt.need.streamed, attempt.expected_s)

    def begin(self, attempt: Attempt | None, now: float) -> None:
        """Note that a request goes here."""
        self.in_flight += 1
        self.requests += 1
        self.breaker.began(now)
        if attempt is None:
            return
        if not self._waiting:
            self._front_since = now
        self._waiting[attempt] = None
        self._waiting_k += attempt.uncached_ktokens
        self.prefixes.sent(attempt.need.prefix, now)

    def end(self, attempt: Attempt | None, now: float) -> None:
        """Note that the request has left, however it went."""
        self.in_flight = max(self.in_flight - 1, 0)
        if attempt is None or attempt not in self._waiting:
            return
        self._gone(attempt, now)
        seconds = now - attempt.begun
        if seconds > attempt.expected_s and self.breaker.state(now) is not State.OPEN:
            # Its client left: the answer would have taken at least so long.
            self.prediction.first_byte(attempt.need.streamed, attempt.load, seconds, now)
        self.breaker.left()

    def first_byte(self, attempt: Attempt, seconds: float, now: float) -> None:
        """Note an answer that has begun; `settle` learns from it."""
        self._samples.append((attempt, seconds, now))
        attempt.first_at, attempt.there = now, self.there(now)
        self._answered_at = now
        if attempt in self._waiting:
            self._gone(attempt, now)
        others_s = attempt.others_s
        if others_s is not None and seconds > SLOW * others_s and seconds > others_s + SLOW_S:
            self.fault(Fault.SLOW, f"answered after {seconds:.1f} s", now)
        else:
            self.breaker.served(now)

    def outrun(self, attempt: Attempt, now: float) -> None:
        """Note that another replica, asked later, had its first byte before this one."""
        if self._answered_at <= attempt.begun:  # else it goes on, and this one was a long one
            seconds = now - attempt.begun
            self.fault(Fault.SLOW, f"had no first byte after {seconds:.1f} s, another had", now)

    def settle(self) -> None:
        """Learn from the answers since the last time; it is done before anything is predicted."""
        samples, self._samples = self._samples, []
        for attempt, seconds, now in samples:
            uncached_k = self._prove(attempt, seconds, now)
            x = (attempt.load[0], uncached_k, *attempt.load[2:])
            self.prediction.first_byte(attempt.need.streamed, x, seconds, now)

    def fault(self, fault: Fault, reason: str, now: float, retry_after_s: float = 0.0) -> None:
        """Note a fault; a replica that breaks off may come back with an empty cache."""
        if self.breaker.fault(fault, now, retry_after_s):
            self.said = reason
        if fault is Fault.UNREACHABLE:
            self.prefixes.forget()

    def view(self, now: float) -> dict[str, Any]:
        """Return its entry of `Router.view`."""
        self.settle()
        breaker = self.breaker
        return {
            "name": self.replica.name,
            "url": self.replica.url,
            "source": self.replica.source,
            "models": list(self.models),
            "usable": self.usable(now),
            "reason": "" if self.usable(now) and self.check else self.said,
            "cooling_s": max(round(breaker.cool_until - now, 3), 0.0),
            "breaker": breaker.state(now).value,
            "in_flight": self.in_flight,
            "others_in_flight": round(self.others.at(now), 1),
            "requests": self.requests,
            "first_byte_s": self.prediction.view(),
            "token_s": round(self.prediction.token_s(self.there(now)), 6),
            "rtt_s": None if self.rtt_s is None else round(self.rtt_s, 6),
        }

    def _gone(self, attempt: Attempt, now: float) -> None:
        if next(iter(self._waiting)) is attempt:
            self._front_since = now
        del self._waiting[attempt]
        self._waiting_k = max(self._waiting_k - attempt.uncached_ktokens, 0.0)
        if not self._waiting:
            self._waiting_k = 0.0

    def _ahead_k(self, streamed: bool, now: float) -> float:
        """Return how many thousand tokens are to be read before a request that comes now."""
        front = next(iter(self._waiting), None)
        if front is None:
            return 0.0
        each_s = self.prediction.prefill_s_per_ktoken(streamed)
        read_k = (now - self._front_since) / each_s if each_s > 0 else 0.0
        return max(self._waiting_k - min(front.uncached_ktokens, read_k), 0.0)

    def _prove(self, attempt: Attempt, seconds: float, now: float) -> float:
        """Learn from the time whether what was taken for cached really was.

        Return how many thousand tokens were read then, as far as can be told.
        """
        streamed = attempt.need.streamed
        if not attempt.cached_tokens or not self.prediction.known(streamed):
            return attempt.uncached_ktokens
        one, _, *rest = attempt.load
        missed_k = attempt.prompt_tokens / 1000
        hit_k = missed_k - attempt.cached_tokens / 1000 / max(self.prefixes.trust, 0.01)
        hit_s = self.prediction.first_s(streamed, (one, max(hit_k, 0.0), *rest), now)
        missed_s = self.prediction.first_s(streamed, (one, missed_k, *rest), now)
        if missed_s <= _TELLING * hit_s:
            return attempt.uncached_ktokens
        share = (missed_s - seconds) / (missed_s - hit_s)
        self.prefixes.proved(share)
        return attempt.uncached_ktokens if share > _MISSED else missed_k
