"""Which of a peer's paths to use, and when to leave one that is silent. A core.

Better is: by class, then by RTT; among equals what is in use stays unless another is quicker by
BETTER_RTT and BETTER_RTT_S, and then not within SETTLED_S of the last move. The node with the lower
id nominates: its pings say which path it uses, and the other uses that one as well, so that both
send the same way; only from a direct path to a relay it does not follow.

    the path in use                         is left after
    ---------------                         -------------
    never answered (a relay)                UNPROVED_S; at once if another answers
    silent, another answers                 SWITCH_S and SWITCH_PINGS
    silent, WireGuard receives on it        RECEIVING_S and RECEIVING_PINGS: lost packets, perhaps
    silent, nothing else answers            GIVE_UP_S and GIVE_UP_PINGS

each no sooner than three RTTs.
"""

from __future__ import annotations

from agent.paths.book import Book
from agent.paths.path import Path

BETTER_RTT, BETTER_RTT_S = 0.8, 0.005
SETTLED_S = 3.0
# At a fifth of packets lost each way a ping fails in 36 of 100: six in a row in 0.2.
SWITCH_S, SWITCH_PINGS = 0.5, 6
GIVE_UP_S, GIVE_UP_PINGS = 1.6, 5
RECEIVING_S, RECEIVING_PINGS = 2.4, 8
# A relay that the peer may not have joined yet.
UNPROVED_S = 6.0
# Keepalives are 14 s apart; two may be lost.
NOMINATED_S = 40.0
_LONG_AGO = float("-inf")


def better(
    book: Book, used: Path | None, nominated: Path | None, since: float, now: float
) -> Path | None:
    """Return the path to move to, or None. `since`: the last move; `nominated`: by the peer."""
    sound = book.sound(now)
    if not sound:
        return None
    best = min(sound, key=lambda p: (book.path_class(p), p.rtt or 0.0))
    follows = nominated in sound and (
        nominated is not None and (nominated.relay is None or best.relay is not None)
    )
    if follows and nominated is not None:
        best = nominated
    if used is None or used.failed or not used.proved(now):
        return best
    if best is used or not best.fresh(now):
        return None
    if follows or book.path_class(best) < book.path_class(used):
        return best
    if book.path_class(best) > book.path_class(used) or now - since < SETTLED_S:
        return None
    rtt = used.rtt or 0.0
    return best if (best.rtt or 0.0) < min(rtt * BETTER_RTT, rtt - BETTER_RTT_S) else None


def too_silent(book: Book, used: Path, *, receiving: bool, now: float) -> bool:
    """Say whether to leave the path in use, which has not answered in time."""
    silent, pings = used.silent_for(now), used.unanswered
    others = any(path is not used and path.fresh(now) for path in book.all())
    if used.answered_at == _LONG_AGO:
        return others or silent >= UNPROVED_S
    if receiving:
        least_s, least_pings = RECEIVING_S, RECEIVING_PINGS
    elif others:
        least_s, least_pings = SWITCH_S, SWITCH_PINGS
    else:
        least_s, least_pings = GIVE_UP_S, GIVE_UP_PINGS
    return silent >= max(least_s, 3 * (used.rtt or 0.0)) and pings >= least_pings
