"""One place of a peer: what is asked of it, what it answered, whether it is alive. A core.

A path is

    proved    it answered a ping of ours, from that place, and has not failed since
    silent    a ping was not answered in time: `silent_since` is when the first such was sent
    failed    silent too long (`dead`); an answer proves it again, after a penalty if it fails often

`pair.py` decides which path is used and when each is asked; a burst is a handful of pings in quick
succession, for a place that may open at any moment because the other side is probing too.
"""

from __future__ import annotations

from agent.identity.keys import NodeId
from agent.paths.loss import Loss
from agent.paths.messages import Kind, Place

# When the pings of a burst leave, after its begin. Both sides do this, the other begins a signal's
# way later, and a fifth of packets may be lost: the last ones are for slow signals.
BURST_S = (0.0, 0.1, 0.25, 0.5, 0.9, 1.5, 2.5, 4.0)
# Before a first RTT is known; then twice the RTT and this much for a busy machine, or what the
# variation of the RTT asks for (as in TCP, RFC 6298): where machines are so busy that answers come
# late, to take them for lost and look for other ways would only make them busier.
_TIMEOUT_S, _SLACK_S, _TIMEOUT_MAX_S = 1.0, 0.25, 2.5
# A path whose last answer is older may have gone unnoticed; idle keepalives are 15 s apart.
PROVED_S = 40.0
FRESH_S = 3.0
# A path that failed so many times within PENALTY_WINDOW_S is not taken again at its first answer.
_PENALTY_FIRST_S, _PENALTY_MAX_S = 4.0, 64.0
_PENALTY_WINDOW_S = 300.0
_NEVER = float("inf")
_LONG_AGO = float("-inf")


class Path:
    """A place of the peer, and what we know of the way there and back."""

    __slots__ = (
        "answered_at",
        "asked_at",
        "failed",
        "failures",
        "heard_at",
        "kind",
        "loss",
        "next_at",
        "penalty_until",
        "place",
        "provisional_until",
        "relay",
        "retry_until",
        "rtt",
        "seen",
        "silent_since",
        "step",
        "trusted",
        "unanswered",
        "usable_at",
        "variation",
    )

    def __init__(self, place: Place, kind: Kind | None, relay: NodeId | None = None) -> None:
        """`kind`: the peer's word, None for a place that we only heard it from."""
        self.place = place
        self.kind = kind
        self.relay = relay
        self.trusted = False  # a relay's place that we know to be a relay's: usable unproved,
        self.usable_at = _LONG_AGO  # from then on
        self.rtt: float | None = None
        self.variation = 0.0  # of the RTT
        self.loss = Loss()
        self.seen: Place | None = None  # where the peer sees us on this path
        self.asked_at = self.answered_at = self.heard_at = _LONG_AGO
        self.silent_since: float | None = None
        self.unanswered = 0
        self.failed = False
        self.failures: list[float] = []
        self.penalty_until = _LONG_AGO
        self.provisional_until = _LONG_AGO
        self.retry_until = _LONG_AGO
        self.next_at = _NEVER
        self.step = len(BURST_S)

    @property
    def timeout_s(self) -> float:
        """How long an answer may take."""
        if self.rtt is None:
            return _TIMEOUT_S
        usual_s = 2 * self.rtt + _SLACK_S
        return max(usual_s, min(self.rtt + 4 * self.variation, _TIMEOUT_MAX_S))

    @property
    def bursting(self) -> bool:
        """Whether a burst is under way."""
        return self.step < len(BURST_S)

    def burst(self, at: float) -> None:
        """Begin a burst at `at`, or sooner if one was to begin sooner.

        One that is under way goes on, and begins again only in its second half.
        """
        if 0 < self.step < len(BURST_S) // 2:
            return
        self.step = 0
        self.next_at = min(at, self.next_at)

    def asked(self, now: float) -> None:
        """Note that a ping left."""
        self.asked_at = now
        self.loss.asked(now)
        self.unanswered += 1
        if self.silent_since is None:
            self.silent_since = now
        if self.bursting:
            self.step += 1
            gap = BURST_S[self.step] - BURST_S[self.step - 1] if self.bursting else _NEVER
            self.next_at = now + gap
        else:
            self.next_at = _NEVER

    def answered(self, sent_at: float, seen: Place, now: float) -> None:
        """Note an answer to the ping that left at `sent_at`."""
        rtt = now - sent_at
        self.loss.answered(sent_at, now)
        if self.rtt is None or self.failed:
            self.rtt = rtt
        else:
            self.variation += (abs(rtt - self.rtt) - self.variation) / 4
            self.rtt += (rtt - self.rtt) / 4
        self.answered_at = now
        self.seen = seen
        self.unanswered = 0
        self.silent_since = None
        self.failed = False
        self.step = len(BURST_S)
        self.next_at = _NEVER

    def fail(self, now: float) -> None:
        """It is silent too long."""
        self.failed = True
        self.loss.broken()
        self.failures = [at for at in self.failures if now - at < _PENALTY_WINDOW_S] + [now]
        if len(self.failures) > 1:
            penalty = _PENALTY_FIRST_S * 2.0 ** min(len(self.failures) - 2, 10)
            self.penalty_until = now + min(penalty, _PENALTY_MAX_S)

    def heard_again(self, now: float) -> None:
        """The peer's agent was away for a while, and is back: its silence counts from now."""
        self.silent_since = None
        self.unanswered = 0
        self.failed = False
        self.next_at = min(self.next_at, now)

    def forget(self) -> None:
        """We are on another network: nothing that was proved holds."""
        self.failed = True
        self.penalty_until = _LONG_AGO
        self.failures = []
        self.rtt, self.variation, self.loss = None, 0.0, Loss()
        self.answered_at = _LONG_AGO

    def proved(self, now: float) -> bool:
        """Say whether it answered, and nothing speaks against it."""
        return not self.failed and now - self.answered_at <= PROVED_S

    def suspect(self, now: float) -> bool:
        """Say whether a ping was not answered in time."""
        return self.silent_since is not None and now - self.silent_since > self.timeout_s

    def sound(self, now: float) -> bool:
        """Say whether it may be taken now."""
        return self.proved(now) and not self.suspect(now) and now >= self.penalty_until

    def fresh(self, now: float) -> bool:
        """Say whether it answered in the last seconds, so that it is alive beyond doubt."""
        return self.sound(now) and now - self.answered_at <= FRESH_S

    def silent_for(self, now: float) -> float:
        """Return how long no ping has been answered."""
        return 0.0 if self.silent_since is None else now - self.silent_since
