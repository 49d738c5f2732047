"""When an update has proved itself, and when it has had its time. A core.

Used while the running slot is on trial: the agent's health is fed in, and what comes out is the
event `Healthy` or `GaveUp` for `slots.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# An agent that crashes at its start, or minutes after it, does so within it.
SUSTAINED_S = 300.0
# From the first report on: a slow card and a router that restarts at the same time fit in.
GIVE_UP_S = 1800.0
# Reports come each 10 s; who is silent for longer was not healthy in between.
MAX_SILENCE_S = 30.0


@dataclass
class Probation:
    """Watches one boot of a slot on trial. All times are seconds of one steady clock."""

    _began: float | None = None
    _healthy_since: float | None = None
    _last: float = 0.0

    def report(self, healthy: bool, now: float) -> Literal["good", "gave up"] | None:
        """Take in the agent's health; say what follows from it, None for nothing yet."""
        if self._began is None:
            self._began = now
        if not healthy or now - self._last > MAX_SILENCE_S:
            self._healthy_since = None
        self._last = now
        if healthy:
            if self._healthy_since is None:
                self._healthy_since = now
            if now - self._healthy_since >= SUSTAINED_S:
                return "good"
        return self.look(now)

    def look(self, now: float) -> Literal["gave up"] | None:
        """Say whether its time is over without a report; asked as often as is convenient."""
        if self._began is None:
            self._began = now
        # One that is healthy now may finish: it needs at most SUSTAINED_S more.
        silent = now - self._last > MAX_SILENCE_S
        if now - self._began >= GIVE_UP_S and (self._healthy_since is None or silent):
            return "gave up"
        return None
