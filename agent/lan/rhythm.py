"""When to announce and when to ask. A core.

| after a change | announce | ask directly | ask the group |
|----------------|----------|--------------|---------------|
| 0 s            | yes      | yes          |               |
| 0.25 s         |          |              | yes           |
| 1 s            | yes      | yes          | yes           |
| 3 s            | yes      | yes          | yes           |
| then each period | what the owner says once nothing changes |||

A change is: start, an interface or address that is new, other network keys. The first row is all it
takes unless a packet is lost, a firewall drops direct answers, or an interface is not ready yet (an
IPv6 address is tentative for a second). RFC 6762 wants a second between announcements. Used by
`watch.py`. Times are seconds of a monotonic clock.
"""

from __future__ import annotations

import enum


class Step(enum.Flag):
    """What is due."""

    ANNOUNCE = enum.auto()
    ASK_DIRECTLY = enum.auto()
    ASK_GROUP = enum.auto()


_ALL = Step.ANNOUNCE | Step.ASK_DIRECTLY | Step.ASK_GROUP
_AFTER_A_CHANGE = (
    (0.0, Step.ANNOUNCE | Step.ASK_DIRECTLY),
    (0.25, Step.ASK_GROUP),
    (1.0, _ALL),
    (3.0, _ALL),
)


class Rhythm:
    """The steps after a change, then one kind of step in each period."""

    def __init__(self, period_s: float, steady: Step) -> None:
        self._period_s, self._steady = period_s, steady
        self._ahead: list[tuple[float, Step]] = []
        self.next_at = float("inf")

    def restart(self, now: float) -> None:
        """Begin anew: there was a change."""
        self._ahead = [(now + after_s, step) for after_s, step in _AFTER_A_CHANGE]
        self.next_at = now

    def due(self, now: float) -> Step:
        """Return what is to be done at `now`, all that was missed together; often nothing."""
        steps = Step(0)
        if now < self.next_at:
            return steps
        while self._ahead and self._ahead[0][0] <= now:
            steps |= self._ahead.pop(0)[1]
        steps = steps or self._steady
        self.next_at = self._ahead[0][0] if self._ahead else now + self._period_s
        return steps
