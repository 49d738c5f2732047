"""One side's door at the relay: which place is the side's, by what came to its port. A core.

    comes                                       from            does
    ------------------------------------------  --------------  -----------------------------------
    what the side's node did not seal           its seat        is to be forwarded (a probe, say)
    what the side's node did not seal           elsewhere       nothing
    Open of another time, allocation, or again  anywhere        nothing
    Open                                        its seat        Opened
    Open without a cookie that is right there   elsewhere       Challenge
    Open with the cookie of that place          elsewhere       that place is the seat now; Opened

So a spoofed source gets at most one datagram, no longer than what was spent on it, and only by
replaying what the node has just sealed before the original arrives; it never becomes the seat.
Cookies are a MAC of place and time: nothing is kept for those who ask.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from agent.relay.pairs import Place
from agent.relay.wire import COOKIE_BYTES, Challenge, Open, Opened, PairSeal, packed

# A machine that keeps time at all is within this, as for discovery.
CLOCK_SKEW_S = 120.0
# A cookie holds for one to two of these: a round trip, with repeats.
COOKIE_SLOT_S = 10.0


@dataclass(frozen=True)
class Taken:
    """What a datagram led to: an answer to its source; whether the source counts; not for us."""

    answer: bytes | None = None
    opened: bool = False
    foreign: bool = False


_NOTHING, _FOREIGN = Taken(), Taken(foreign=True)


class Door:
    """Judges the datagrams with our first word that come to one side's port."""

    def __init__(self, allocation: bytes, seal: PairSeal, secret: bytes) -> None:
        """Take the allocation's id, the seal with the side's node, and 32 random bytes."""
        self._allocation = allocation
        self._secret = secret
        self._last_us = 0
        self.seal = seal

    def take(
        self,
        datagram: bytes,
        source: Place,
        seat: Place | None,
        now: float,
        nonce: bytes,
        *,
        peer_open: bool,
    ) -> Taken:
        """Judge a datagram from `source`. `now`: unix seconds; `nonce`: 24 random bytes."""
        message = self.seal.open(datagram)
        if message is None:
            return _FOREIGN if source == seat else _NOTHING
        if not isinstance(message, Open) or message.id != self._allocation:
            return _NOTHING
        if abs(message.sent_us / 1e6 - now) > CLOCK_SKEW_S or message.sent_us <= self._last_us:
            return _NOTHING
        self._last_us = message.sent_us
        slot = int(now // COOKIE_SLOT_S)
        cookies = [self._cookie(source, each) for each in (slot, slot - 1)]
        proved = any(hmac.compare_digest(message.cookie, cookie) for cookie in cookies)
        if source != seat and not proved:
            challenge = Challenge(message.id, message.sent_us, cookies[0])
            return Taken(self.seal.seal(challenge, nonce))
        opened = Opened(message.id, message.sent_us, source, peer_open)
        return Taken(self.seal.seal(opened, nonce), opened=True)

    def _cookie(self, place: Place, slot: int) -> bytes:
        said = packed(place) + slot.to_bytes(8, "big")
        return hashlib.blake2b(said, key=self._secret, digest_size=COOKIE_BYTES).digest()
