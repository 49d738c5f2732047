"""When an update has proved itself, and when it has had its time. A core.

Used while the running slot is on trial: the agent's health is fed in, and what comes out is the
event `Healthy` or `GaveUp` for `slots.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import msgspec

# An agent that crashes at its start, or minutes after it, does so within it.
SUSTAINED_S = 300.0
# From the first report on: a slow card and a router that restarts at the same time fit in.
GIVE_UP_S = 1800.0
# Reports come each 10 s; who is silent for longer was not healthy in between.
MAX_SILENCE_S = 30.0


class Outlook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`healthy_since` (None: it is not), `good_at` and `over_at`, in seconds of the steady clock.

    It is good at `good_at`, if it stays healthy; it is given up at `over_at`, if it is not then.
    """

    healthy_since: float | None
    good_at: float | None
    over_at: float


@dataclass
class Probation:
    """Watches one boot of a slot on trial. All times are seconds of one steady clock."""

    sustained_s: float = SUSTAINED_S
    give_up_s: float = GIVE_UP_S
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
            if now - self._healthy_since >= self.sustained_s:
                return "good"
        return self.look(now)

    def look(self, now: float) -> Literal["gave up"] | None:
        """Say whether its time is over without a report; asked as often as is convenient."""
        if self._began is None:
            self._began = now
        # One that is healthy now may finish: it needs at most `sustained_s` more.
        silent = now - self._last > MAX_SILENCE_S
        if now - self._began >= self.give_up_s and (self._healthy_since is None or silent):
            return "gave up"
        return None

    def outlook(self) -> Outlook | None:
        """Return how it stands; None before the first report."""
        if self._began is None:
            return None
        since = self._healthy_since
        good_at = None if since is None else since + self.sustained_s
        return Outlook(since, good_at, self._began + self.give_up_s)


def of_command_line(command_line: str) -> Probation:
    """Return the probation that the kernel's command line asks for: covey.trial=HEALTHY:GIVE_UP.

    Both in seconds. It is for machines that restart in seconds, and for tests; a person writes it
    into grub.cfg.
    """
    found = re.search(r"\bcovey\.trial=(\d{1,6}):(\d{1,6})(?!\S)", command_line)
    return Probation(float(found[1]), float(found[2])) if found else Probation()
