"""How often and when a request is sent a second time before its first byte.

A core, used by `proxy.py` and `hedging.py`. A replica that refuses because it has too much to do is
not helped by others' refusals coming to it at once: retries wait a random while that doubles, and
all requests together pay for them from one budget. A replica that is gone costs nothing and is not
counted. What is sent twice because it is late (`hedging.py`) has a budget of its own.
"""

from __future__ import annotations

from random import Random

BACKOFF_FIRST_S = 0.02
BACKOFF_MOST_S = 1.0
# Each request pays for a fifth of a retry, as Finagle's budget has it.
RETRIES_SHARE = 0.2
# A gateway that has had few requests may try a burst of them again all the same.
RETRIES_MOST = 100.0


class Budget:
    """A bucket, full at first, that each request fills by `share`, up to `most`."""

    def __init__(self, share: float, most: float) -> None:
        self.share = share
        self._most = most
        self._left = most

    def request(self) -> None:
        """Note a new request."""
        self._left = min(self._left + self.share, self._most)

    def take(self) -> bool:
        """Take one out of the budget; False if there is none."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def backoff_s(retries: int, random: Random) -> float:
    """Return how long to wait before the retry that follows so many: anything up to its bound."""
    return random.uniform(0.0, min(BACKOFF_FIRST_S * 2.0 ** min(retries, 10), BACKOFF_MOST_S))
