"""How often something may be done for others: so many a second, with some saved up. A core."""

from __future__ import annotations


class Allowance:
    """A bucket that fills at `rate` a second up to `burst`; `now` is any clock in seconds."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = float("-inf")

    def take(self, now: float) -> bool:
        """Take one if there is one; say whether there was."""
        self._left = min(self._burst, self._left + self._rate * max(0.0, now - self._at))
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
