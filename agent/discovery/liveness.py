"""Which addresses answer, how fast, and how patient to be with them. A core.

Used by `protocol.py`. Times are loop times in seconds, given as `now`. A place is (id, host, port):
an address is judged together with the node that should be there, so that a lie about where a node
lives does no harm to the node.
"""

from __future__ import annotations

from dataclasses import dataclass

# A question is repeated once, in case a datagram was lost, and then given up: after three and six
# of the round trips that we see, within these bounds. A round trip around the world is 0.3 s; the
# library waits 5 s.
REPEAT_MIN_S, REPEAT_MAX_S = 0.25, 0.5
TIMEOUT_MIN_S, TIMEOUT_MAX_S = 0.75, 1.0
# After this (three round trips) an answer is slow: a lookup goes on beside it. Twice a round trip
# across a continent; on a LAN a dead node delays the others by this.
SLOW_MIN_S, SLOW_MAX_S = 0.1, 0.5
# Weight of a new round trip in the smoothed one, as in TCP (RFC 6298).
_RTT_WEIGHT = 1 / 8
# How long an address that did not answer is passed over: at first briefly (it or we may have been
# busy), then twice as long each time. Any datagram from it ends that.
DEAD_MIN_S, DEAD_MAX_S = 5.0, 120.0
# An address that a datagram seems to come from is asked whether that is true, at most so often.
# Without this, two busy nodes would ask each other for ever.
PROVE_AGAIN_S = 10.0
# A proved address is not asked again for this long, though its bucket was full.
PROOF_S = 300.0
# Places remembered of each kind; some 1 MB.
PLACES_MAX = 4096

Place = tuple[bytes, str, int]


@dataclass(frozen=True)
class _Dead:
    until: float
    span_s: float


class Liveness:
    """What one node has learned about others' addresses."""

    def __init__(self) -> None:
        self._rtt_s = 0.0
        self._dead: dict[Place, _Dead] = {}
        self._prove_after: dict[Place, float] = {}

    @property
    def any_dead(self) -> bool:
        """Whether there may be any such place at all: mostly not, and it is asked for often."""
        return bool(self._dead)

    @property
    def repeat_s(self) -> float:
        """When to repeat a question."""
        return max(REPEAT_MIN_S, min(3 * self._rtt_s, REPEAT_MAX_S))

    @property
    def timeout_s(self) -> float:
        """When to give a question up."""
        return max(TIMEOUT_MIN_S, min(6 * self._rtt_s, TIMEOUT_MAX_S))

    @property
    def slow_s(self) -> float:
        """How long a lookup waits for one answer before it goes on beside it."""
        return max(SLOW_MIN_S, min(3 * self._rtt_s, SLOW_MAX_S))

    def measured(self, round_trip_s: float) -> None:
        """Take in a round trip, late ones too: under load everything becomes more patient."""
        self._rtt_s += _RTT_WEIGHT * (round_trip_s - self._rtt_s)

    def is_dead(self, place: Place, now: float) -> bool:
        """Say whether the place is to be passed over."""
        dead = self._dead.get(place)
        return dead is not None and now < dead.until

    def heard(self, place: Place) -> None:
        """Note a datagram from there (its source may be forged: this proves nothing)."""
        self._dead.pop(place, None)

    def answered(self, place: Place, now: float) -> None:
        """Note an answer to our question from there: the address is proved."""
        self.heard(place)
        self._put_off(place, now + PROOF_S)

    def silent(self, place: Place, now: float) -> None:
        """Note that the place did not answer, or said goodbye."""
        if self._prove_after.get(place, 0.0) > now + PROVE_AGAIN_S:
            self._put_off(place, now + PROVE_AGAIN_S)
        before = self._dead.get(place)
        span_s = min(2 * before.span_s, DEAD_MAX_S) if before else DEAD_MIN_S
        if len(self._dead) >= PLACES_MAX:
            self._dead = {p: dead for p, dead in self._dead.items() if dead.until > now}
        if len(self._dead) < PLACES_MAX:
            self._dead[place] = _Dead(now + span_s, span_s)

    def may_prove(self, place: Place, now: float) -> bool:
        """Say whether to ask the place for a proof now; the answer counts as having asked."""
        if now < self._prove_after.get(place, float("-inf")):
            return False
        self._put_off(place, now + PROVE_AGAIN_S)
        return True

    def _put_off(self, place: Place, until: float) -> None:
        if len(self._prove_after) >= PLACES_MAX:
            self._prove_after.clear()
        self._prove_after[place] = until
