"""Who wrote messages lately, and which: each counts once, and each author has a rate. A core.

Used by `gossip.py`. For each author it keeps which (sent_ms, sequence) were taken, within the time
for which a message is valid; when there are too many, a floor rises, and what is below it counts as
seen. So a replay never passes, and the memory has a bound.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Set as AbstractSet

from agent.control.envelope import Envelope

# Clocks of members may differ by this, and a message may be as long on its way.
MAX_AGE_S = 300.0
# What one author may publish. Health, load and elections take less than one in a second.
RATE_PER_S = 10.0
BURST = 200.0
# What the rate above makes in the time that a message is valid, and the bursts.
MAX_KEPT = 2 * int(MAX_AGE_S * RATE_PER_S + BURST)


class Verdict(enum.Enum):
    """Whether an author's message is taken, or why not."""

    TAKEN = "taken"
    STRANGER = "its author is no member"
    CLOCK = "too old or from the future"
    SEEN = "seen before"
    RATE = "its author publishes too much"


class _Author:
    """One author's window and bucket."""

    def __init__(self, now: float) -> None:
        self.floor = (0, 0)
        self.seen: set[tuple[int, int]] = set()
        self.order: list[tuple[int, int]] = []
        self.tokens, self.at = BURST, now


class Authors:
    """The members as authors."""

    def __init__(self, own: bytes) -> None:
        """`own`: this node's id (32 bytes); its messages come from here alone."""
        self._own = own
        self._members: frozenset[bytes] = frozenset()
        self._authors: dict[bytes, _Author] = {}

    def set_members(self, members: AbstractSet[bytes], wall: float) -> None:
        """Replace who may write; others are forgotten once their messages are too old to pass."""
        self._members = frozenset(members)
        oldest_ms = (wall - MAX_AGE_S) * 1000
        self._authors = {
            author: kept
            for author, kept in self._authors.items()
            if author in self._members or (kept.order and max(kept.order)[0] > oldest_ms)
        }

    def judge(self, envelope: Envelope, wall: float) -> Verdict:
        """Say what is known before the signature is checked; `wall`: unix seconds."""
        if envelope.author == self._own:
            return Verdict.SEEN
        if envelope.author not in self._members:
            return Verdict.STRANGER
        if abs(envelope.sent_ms / 1000 - wall) > MAX_AGE_S:
            return Verdict.CLOCK
        author = self._authors.get(envelope.author)
        name = (envelope.sent_ms, envelope.sequence)
        if author is not None and (name <= author.floor or name in author.seen):
            return Verdict.SEEN
        return Verdict.TAKEN

    def take(self, envelope: Envelope, now: float, wall: float) -> Verdict:
        """Count a message that `judge` lets pass and whose signature holds; TAKEN or RATE.

        `now`: monotonic seconds, for the rate.
        """
        author = self._authors.setdefault(envelope.author, _Author(now))
        author.tokens = min(BURST, author.tokens + (now - author.at) * RATE_PER_S)
        author.at = now
        if author.tokens < 1:
            return Verdict.RATE
        author.tokens -= 1
        name = (envelope.sent_ms, envelope.sequence)
        author.seen.add(name)
        heapq.heappush(author.order, name)
        oldest_ms = (wall - MAX_AGE_S) * 1000
        while author.order and (author.order[0][0] < oldest_ms or len(author.order) > MAX_KEPT):
            author.floor = heapq.heappop(author.order)
            author.seen.discard(author.floor)
        return Verdict.TAKEN
