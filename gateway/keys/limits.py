"""How much of something may be used: in any minute (Window), or of a day's lease (Lease).

A core; `now` is in seconds of a clock that does not go back. Both know what is held by requests
that run: their tokens are known only at their end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

# A window's amounts are kept by the second, not one by one: memory is bounded, and what was used
# leaves the window a second late at most, never early.
SLOTS = 60
# What is held comes free when a request ends, and nobody knows when that is.
HELD_RETRY_S = 1.0


class Window:
    """At most `limit` in any `span_s`, whatever the moment the span is laid at.

    `elsewhere`: what other processes used of it and hold, as far as is known here.
    A token bucket of the same rate would let twice the limit pass within a span that begins with
    a full bucket.
    """

    def __init__(self, limit: int, span_s: float = 60.0) -> None:
        self.limit = limit
        self.held = 0
        self.elsewhere = 0
        self._slot_s = span_s / SLOTS
        self._slots: deque[list[int]] = deque()  # [number of the slot, amount], oldest first
        self._used = 0

    def left(self, now: float) -> int:
        """Return how much may still be used now; below zero after more was used than was held."""
        self._leave(now)
        return self.limit - self._used - self.held - self.elsewhere

    def taken(self, now: float) -> int:
        """Return how much is used and held here."""
        self._leave(now)
        return self._used + self.held

    def use(self, amount: int, now: float) -> None:
        """Count an amount as used now."""
        number = self._leave(now)
        if self._slots and self._slots[-1][0] >= number:
            self._slots[-1][1] += amount
        else:
            self._slots.append([number, amount])
        self._used += amount

    def wait_s(self, amount: int, now: float) -> float:
        """Return the seconds until `amount` (at most the limit) is left, if nobody uses more."""
        missing = amount - self.left(now)
        if missing <= 0:
            return 0.0
        for number, used in self._slots:
            missing -= used
            if missing <= 0:
                return (number + SLOTS + 1) * self._slot_s - now
        return HELD_RETRY_S

    def reset_s(self, now: float) -> float:
        """Return the seconds until all that is used now has left the window."""
        self._leave(now)
        if not self._slots:
            return 0.0
        return (self._slots[-1][0] + SLOTS + 1) * self._slot_s - now

    def _leave(self, now: float) -> int:
        """Forget what has left the window, and return the number of the slot that `now` is in."""
        number = math.floor(now / self._slot_s)
        while self._slots and self._slots[0][0] < number - SLOTS:
            self._used -= self._slots.popleft()[1]
        return number


class Minute(NamedTuple):
    """What a process has used of a key's limits a minute, and holds."""

    requests: int
    tokens: int


def summed(told: Iterable[Mapping[str, Minute]]) -> dict[str, Minute]:
    """Return the sum for each key of what several processes told."""
    sums: dict[str, Minute] = {}
    for minutes in told:
        for id_, (requests, tokens) in minutes.items():
            had = sums.get(id_, Minute(0, 0))
            sums[id_] = Minute(had.requests + requests, had.tokens + tokens)
    return sums


@dataclass
class Lease:
    """What this gateway may use of a key's daily quota, and what it did use; in tokens.

    `granted`: by the store, in all, for the day. `others`: what the other gateways had used when
    the store was last asked. `full`: it granted less than was wanted then. `returning`: is being
    given back, and no longer in `granted`.
    """

    granted: int = 0
    used: int = 0
    held: int = 0
    others: int = 0
    full: bool = False
    returning: int = 0

    @property
    def left(self) -> int:
        """What is granted and neither used nor held."""
        return self.granted - self.used - self.held


@dataclass(frozen=True)
class Share:
    """What the store knows of another gateway and a key's day; `gone`: it was not seen for long."""

    granted: int
    used: int
    gone: bool


def grant(limit: int, wanted: int, used: int, others: Iterable[Share]) -> int:
    """Return how much of a quota a gateway may have in all that wants `wanted` and used `used`.

    The sum over all gateways does not go over the limit, unless more was used already. A gateway
    that is gone gives back what it had not used by its last word: if it does go on somewhere, cut
    off from the store, the sum is wrong by its last block at most.
    """
    taken = sum(other.used if other.gone else max(other.granted, other.used) for other in others)
    return max(used, min(wanted, limit - taken))


def block(limit: int) -> int:
    """Return how much of a daily quota is leased at a time: small against it, and worth a query."""
    return max(1, min(limit // 20, 50_000))
