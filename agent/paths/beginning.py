"""How WireGuard's first handshake with a peer is got through soon. A core.

WireGuard repeats a handshake after 5 s only, and of two that cross, each end takes the other's for
the newer one, so that neither is completed. Hence:

    this node   event                                     what happens
    ---------   -----                                     ------------
    leads       a path is used                            WireGuard begins, for its keepalive
    leads       the path in use, a relay, is proved       again: what went before may have gone into
                                                           the void
    leads       no session AGAIN_S after that, then       again
                 AGAIN_GROWS times as long each time
    follows     the first path is used                    WireGuard gets no endpoint for FOLLOW_S
                                                           and two RTTs, unless it hears the peer:
                                                           a packet of ours would begin as well
    follows     no session for twice as long              the peer is told that there is none

The node with the lower id leads. `pair.py` tells what happens and has WireGuard begin again.
"""

from __future__ import annotations

# The peer proves its path within about an RTT of us, and has to tell its WireGuard.
FOLLOW_S, FOLLOW_MOST_S = 0.5, 1.5
# Where a fifth is lost on each link, two of five handshakes get through.
AGAIN_S, AGAIN_GROWS, AGAIN_MOST_S = 0.7, 1.2, 12.0
_RTTS = 3


class Beginning:
    """The first session with one peer; times are in seconds."""

    def __init__(self, *, leads: bool) -> None:
        self._leads = leads
        self._session = False
        self._blind = False
        self._begun_at = 0.0
        self._again_s = AGAIN_S

    def used(self, rtt: float | None, *, proved: bool, now: float) -> float:
        """Take that a path is used; return how long WireGuard's endpoint has to wait."""
        if self._session:
            return 0.0
        self._begun_at, self._blind = now, not proved
        self._again_s = max(AGAIN_S, _RTTS * (rtt or 0.0)) * (1 if self._leads else 2)
        return 0.0 if self._leads else min(FOLLOW_S + 2 * (rtt or 0.0), FOLLOW_MOST_S)

    def proved(self, now: float) -> bool:
        """Take that the path in use answers; say whether to begin again."""
        again = self._blind and self._leads and not self._session
        self._blind = False
        if again:
            self._begun_at = now
        return again

    def seen(self, session: bool, *, proved: bool, now: float) -> bool:
        """Take whether WireGuard has a session; say whether one shall be begun again.

        `proved`: the path in use answers.
        """
        self._session = session
        due = proved and not session and now - self._begun_at >= self._again_s
        if due:
            self._begun_at = now
            self._again_s = min(AGAIN_GROWS * self._again_s, AGAIN_MOST_S)
        return due
