"""Whether a replica is left alone for a while because of its faults: a circuit breaker.

A core, one for each replica. Its rules:

    state      what happens                                        then
    closed     could not be reached, or refuses (502, 503, 504)    open
    closed     another 5xx, or slow: the third in a row            open
    closed     half of the last ten seconds' requests failed       open
    open       1, 2, 4 … 30 s with each fault in a row, or what    half-open
               the replica asks for, have passed
    half-open  a request goes there: the trial                     others go elsewhere if they can
    half-open  the trial fails                                     open
    half-open  it leaves, or has no answer for TRIAL_S             the next one is the trial
    any        it serves a request                                 closed
    any        a check reaches it, that could not be reached       closed
"""

from __future__ import annotations

import enum
import math

from gateway.routing.replicas import Fault

COOL_FIRST_S = 1.0
COOL_MOST_S = 30.0
# Errors that may be the request's own fault open it only when they come in a row.
IN_A_ROW = 3
# Of so many requests, weighed by their age, so many have to fail.
RATE = 0.5
RATE_LEAST = 8.0
RATE_S = 10.0
# A trial whose answer is late may be one with a long prompt; another may be quicker.
TRIAL_S = 5.0


class State(enum.Enum):
    """As in the table above."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """The faults of one replica and what follows from them."""

    def __init__(self) -> None:
        self.cool_until = -math.inf
        self.cooling_for: Fault | None = None
        self._in_a_row = 0
        self._tripped = False
        self._trial_since = -math.inf
        self._served, self._failed, self._counted_at = 0.0, 0.0, -math.inf

    def state(self, now: float) -> State:
        """Return the state; it changes with time alone only from open to half-open."""
        if now < self.cool_until:
            return State.OPEN
        return State.HALF_OPEN if self._tripped else State.CLOSED

    def on_trial(self, now: float) -> bool:
        """Say whether a trial is under way, so that others had better go elsewhere."""
        return self.state(now) is State.HALF_OPEN and now - self._trial_since < TRIAL_S

    def began(self, now: float) -> None:
        """Note that a request goes to the replica."""
        if self.state(now) is State.HALF_OPEN and not self.on_trial(now):
            self._trial_since = now

    def left(self) -> None:
        """Note that a request left without telling anything: were it the trial, it was none."""
        self._trial_since = -math.inf

    def fault(self, fault: Fault, now: float, retry_after_s: float = 0.0) -> bool:
        """Note a fault and say whether it is open now, as the table says."""
        self._in_a_row += 1
        self._count(0.0, 1.0, now)
        self._trial_since = -math.inf
        if fault in (Fault.ERROR, Fault.SLOW) and not self._too_many():
            return False
        cool_s = COOL_FIRST_S * 2 ** min(self._in_a_row - 1, 10)
        self.cool_until = now + min(max(cool_s, retry_after_s), COOL_MOST_S)
        self.cooling_for = fault
        self._tripped = True
        return True

    def served(self, now: float) -> None:
        """Note that the replica began to answer a request, not too late."""
        self._count(1.0, 0.0, now)
        self._in_a_row = 0
        self._close()

    def reached(self) -> None:
        """Note a passed check of a replica that could not be reached or was not ready."""
        self._close()

    def _close(self) -> None:
        self.cool_until, self.cooling_for, self._tripped = -math.inf, None, False
        self._trial_since = -math.inf

    def _too_many(self) -> bool:
        total = self._served + self._failed
        often = total >= RATE_LEAST and self._failed >= RATE * total
        return self._in_a_row >= IN_A_ROW or often

    def _count(self, served: float, failed: float, now: float) -> None:
        keep = math.exp(-max(now - self._counted_at, 0.0) / RATE_S)
        self._served = self._served * keep + served
        self._failed = self._failed * keep + failed
        self._counted_at = now
