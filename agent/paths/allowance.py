"""How often something may happen: so many a second, and a burst. A core."""

from __future__ import annotations


class Allowance:
    """A bucket that fills with `per_s` a second up to `burst`."""

    __slots__ = ("_at", "_burst", "_left", "per_s")

    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s = per_s
        self._burst = burst
        self._left = burst
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Say whether it may happen now, and count it if so."""
        if self._at is not None:
            self._left = min(self._burst, self._left + max(0.0, now - self._at) * self.per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        """Do not count one that was taken."""
        self._left = min(self._burst, self._left + 1)
