"""The order of signals between two nodes: numbered, acknowledged, repeated. A core.

    what                                   rule
    ----                                   ----
    a signal of the peer's present epoch   taken if its sequence is above the last
    of a higher epoch                      taken: the peer has started again
    of a lower epoch                       taken only if nothing came for STALE_S: a peer whose
                                           clock was set back, not an old signal carried twice
    ours has news, or calls                repeated by REPEAT_S until the peer has heard it
    one came that calls or has news        answered, so that the peer stops repeating
    the path got direct, through no NAT    ours is not repeated
    anything                               PER_S signals a second at most, BURST at once

Each transmission has a number of its own, and holds everything: so loss, doubling and order do not
matter. Contents are `pair.py`'s.
"""

from __future__ import annotations

from collections import OrderedDict

from agent.paths.allowance import Allowance
from agent.paths.messages import Signal

# The control plane is reliable as a rule, and takes up to some 100 ms; then the peer may be gone.
REPEAT_S = (0.4, 0.6, 1.0, 2.0, 4.0, 8.0)
STALE_S = 10.0
PER_S, BURST = 4.0, 8.0
# Answers wait this long for news of our own to go with them.
_ANSWER_DELAY_S = 0.01
_NEVER = float("inf")
_LONG_AGO = float("-inf")


class Talk:
    """What this node has said to one peer and heard from it."""

    def __init__(self) -> None:
        self.sequence = 0
        self.heard_epoch = 0
        self.heard = 0
        self.heard_at = _LONG_AGO
        self.called_at = _LONG_AGO
        self._calls: OrderedDict[int, float] = OrderedDict()
        self._news = 0  # the first sequence that carried what the peer has to know
        self._acknowledged = 0
        self._tries = 0
        self._next_at = _NEVER
        self._owes = False  # an answer
        self._allowance = Allowance(PER_S, BURST)

    @property
    def wake_at(self) -> float:
        """When a signal is due."""
        return self._next_at

    @property
    def unheard(self) -> bool:
        """Whether the peer has not yet acknowledged our news."""
        return self._acknowledged < self._news

    def say(self, now: float) -> None:
        """There is news, or we call: send soon, and until it is heard."""
        self._news = self.sequence + 1
        self._tries = 0
        self._next_at = min(self._next_at, now)

    def hush(self) -> None:
        """Say nothing after all, and wait for nothing."""
        self._acknowledged = self._news
        self._tries, self._next_at, self._owes = 0, _NEVER, False

    def settle(self) -> None:
        """Repeat nothing: there is a path that needs no agreement. An answer is still given."""
        if self._tries:
            self._acknowledged, self._tries = self._news, 0
            if not self._owes:
                self._next_at = _NEVER

    def answer(self, now: float) -> None:
        """Tell the peer that we heard it."""
        self._owes = True
        self._next_at = min(self._next_at, now + _ANSWER_DELAY_S)

    def accept(self, signal: Signal, own_epoch: int, now: float) -> bool:
        """Say whether a signal is newer than all before, and note what it acknowledges."""
        stale = now - self.heard_at > STALE_S
        if signal.epoch == self.heard_epoch:
            if signal.sequence <= self.heard:
                return False
        elif signal.epoch < self.heard_epoch and not stale:
            return False
        self.heard_epoch, self.heard, self.heard_at = signal.epoch, signal.sequence, now
        if signal.heard_epoch == own_epoch:
            self._acknowledged = max(self._acknowledged, min(signal.heard, self.sequence))
        if not self.unheard and self._tries:
            self._tries, self._next_at = 0, _NEVER
        return True

    def call_rtt(self, signal: Signal, own_epoch: int, now: float) -> float | None:
        """Return how long a call of ours and this answer to it took; None if it answers none.

        Each call is measured once.
        """
        if signal.heard_epoch != own_epoch:
            return None
        sent_at = self._calls.get(signal.heard)
        if sent_at is not None:
            self._calls.clear()
            return now - sent_at
        return None

    def due(self, now: float) -> bool:
        """Say whether to send one now; then call `sent`."""
        if now < self._next_at:
            return False
        if not self._allowance.take(now):
            self._next_at = now + 1 / PER_S
            return False
        return True

    def sent(self, now: float, *, call: bool) -> int:
        """Count a transmission and return its sequence."""
        self.sequence += 1
        if call:
            self.called_at = self._calls[self.sequence] = now
            if len(self._calls) > len(REPEAT_S):
                self._calls.popitem(last=False)
        self._next_at, self._owes = _NEVER, False
        if self.unheard and self._tries < len(REPEAT_S):
            self._next_at = now + REPEAT_S[self._tries]
            self._tries += 1
        return self.sequence
