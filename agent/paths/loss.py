"""Which share of a path's pings is lost. A core.

A ping counts once it was answered, or has waited for `WAIT_S` by the time that a later one is
answered. Until a first answer nothing counts: the path may not be open yet. Nor do more than
`OUTAGE` missing answers in a row: the path was broken then, or the peer away, which says nothing of
how it is while it works. Used by `path.py`.
"""

from __future__ import annotations

# The longest that an answer is waited for (path.py).
WAIT_S = 2.5
# Of seven lost in a row, of one in five each, there are twelve in a million.
OUTAGE = 6
# So many of the last pings tell the share.
_PINGS = 64
# Pings under way: a burst on a long path has a handful; what is more was asked of nobody.
_UNDER_WAY_MAX = 32


class Loss:
    """The pings of one path, and their loss as a share."""

    __slots__ = ("_begun", "_counted", "_under_way", "share")

    def __init__(self) -> None:
        self.share = 0.0
        self._counted = 0
        self._begun = False
        self._under_way: list[float] = []  # when they left; a peer has paths that nobody pings

    def asked(self, now: float) -> None:
        """Note that a ping left."""
        self._under_way = [*self._under_way[-_UNDER_WAY_MAX + 1 :], now]

    def answered(self, sent_at: float, now: float) -> None:
        """Note an answer to the ping that left at `sent_at`."""
        waiting = [at for at in self._under_way if at != sent_at]
        if not self._begun:
            self._begun = True
            waiting = [at for at in waiting if at > sent_at]
        missing = sum(now - at > WAIT_S for at in waiting)
        self._under_way = [at for at in waiting if now - at <= WAIT_S]
        for _ in range(missing if missing <= OUTAGE else 0):
            self._count(1.0)
        self._count(0.0)

    def broken(self) -> None:
        """The path failed: what is under way is not lost by the way."""
        self._under_way.clear()

    def _count(self, lost: float) -> None:
        """A mean at first, then one that forgets."""
        self._counted = min(self._counted + 1, _PINGS)
        self.share += (lost - self.share) / self._counted
