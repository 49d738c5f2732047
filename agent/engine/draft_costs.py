"""What the guesses of a draft model take, and how much may be spent on finding out. A core.

For `pace.py`, which weighs them against what they make. Before the first request `draft_model.py`
has batches of several sizes computed; what they really take later (longer contexts, a busier
machine) moves all sizes alike. Seconds are arguments.

A draft model whose guesses are not worth their time now may be worth it for another text. So a
small share of the time goes to guesses that get no row and only show how often they come true.
"""

from __future__ import annotations

from collections.abc import Sequence

# What guesses may cost that nobody computes.
TRIAL_SHARE = 0.02
# So much of it can be saved up: what was not needed for long must not be spent in one go.
_SAVED_MOST_S = 0.25
_NEWEST = 0.1


class DraftCosts:
    """Seconds of a draft model's batches, by rows; unknown until `learn`."""

    def __init__(self) -> None:
        self._measured: list[tuple[float, float]] = []
        self._level = 1.0
        self._saved_s = 0.0

    @property
    def known(self) -> bool:
        """Whether anything was measured, so that it can be decided whether to draft."""
        return bool(self._measured)

    def learn(self, measured: Sequence[tuple[int, float]]) -> None:
        """Take what batches of so many rows took, in seconds."""
        self._measured = sorted((float(rows), seconds) for rows, seconds in measured)

    def took(self, rows: int, seconds: float) -> None:
        """Take what a batch took by now."""
        expected = self._at(rows)
        if expected > 0.0:
            self._level += _NEWEST * (seconds / expected - self._level)

    def seconds(self, rows: float) -> float:
        """Return what a batch of so many rows takes now."""
        return self._level * self._at(rows)

    def rows_in(self, seconds: float, most: int, least: int) -> int:
        """Return how many rows take at most so long: `most`, or halves of it down to `least`."""
        rows = most
        while rows > least and self.seconds(rows) > seconds:
            rows //= 2
        return max(rows, least)

    def passed(self, seconds: float) -> None:
        """Note that requests were served for so long."""
        self._saved_s = min(_SAVED_MOST_S, self._saved_s + TRIAL_SHARE * seconds)

    def tried(self, seconds: float) -> None:
        """Note what a trial took."""
        self._saved_s -= seconds

    @property
    def may_try(self) -> bool:
        """Whether a trial is paid for; the next one waits until the last one is."""
        return self.known and self._saved_s > 0.0

    def _at(self, rows: float) -> float:
        return between(self._measured, rows) if self._measured else 0.0


def between(points: Sequence[tuple[float, float]], at: float) -> float:
    """Return the value at a place between known ones, in order; beyond the last in proportion."""
    below = [point for point in points if point[0] <= at]
    above = [point for point in points if point[0] >= at]
    if not below:
        return above[0][1]
    low = below[-1]
    if not above:
        return low[1] * at / low[0]
    high = above[0]
    part = (at - low[0]) / (high[0] - low[0]) if high[0] > low[0] else 0.0
    return low[1] + part * (high[1] - low[1])
