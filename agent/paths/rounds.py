"""When a pair that is relayed, or has no path, tries again for a direct one. A core.

A round is a call and a burst at all places. A round of the other side counts as one of ours, so
that both slow down in step.
"""

from __future__ import annotations

import random

# The first find peers whose signals were slow; those from 40 s on leave Linux's conntrack its 30 s
# to forget what came in unasked.
ROUNDS_S = (2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)
# On a direct path, for one of a better class.
BETTER_S = 60.0
_NEVER = float("inf")


class Rounds:
    """The pauses between the rounds of one pair."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._step = 0
        self._passed_at = 0.0
        self.next_at = _NEVER

    def begin(self, now: float) -> None:
        """There is news: try as at first."""
        self._step, self._passed_at = 0, now
        self.next_at = now + ROUNDS_S[0]

    def passed(self, now: float) -> None:
        """A round was made, by either side; what both begin at once counts once."""
        if now - self._passed_at > ROUNDS_S[0] / 2:
            self._step = min(self._step + 1, len(ROUNDS_S) - 1)
            self._passed_at = now
        self.next_at = now + ROUNDS_S[self._step] * self._rng.uniform(0.9, 1.1)

    def direct(self, now: float, *, best: bool) -> None:
        """The path is direct; `best`: there is no better class."""
        self.next_at = _NEVER if best else now + BETTER_S
