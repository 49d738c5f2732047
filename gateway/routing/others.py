"""How many requests of others are at a replica: other gateways', and who asks it directly.

A core, one for each replica. A head says with each answer, and each check, how many requests are
there; what this gateway has not sent itself is others'. It is true for a moment, so it fades.
"""

from __future__ import annotations

import math

# Answers take seconds, and a head is checked once a second: what is older says little.
FADE_S = 3.0
# No head takes so many; whoever says more is not believed.
MOST = 10_000


class Others:
    """Others' requests at one replica; `known`: there were some when it was told last."""

    def __init__(self) -> None:
        self.known = False
        self._count = 0.0
        self._at = -math.inf

    def told(self, there: int, own: int, now: float) -> None:
        """Note that so many requests are there, with our own; nonsense is ignored."""
        if 0 <= there <= MOST:
            # Ours may be on their way there or back, so the difference may be less than nothing.
            self._count, self._at = float(max(there - own, 0)), now
            self.known = self._count > 0

    def at(self, now: float) -> float:
        """Return how many there are about now."""
        return self._count * math.exp(-max(now - self._at, 0.0) / FADE_S)
