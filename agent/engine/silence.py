"""How long a neighbour may be silent before it counts as lost: by what its link has shown.

A core: time is an argument. For `watch.py`, which hears each neighbour every `ping_s`, however long
llama.cpp computes, so silence is the link's, or the neighbour is frozen, dead or cut off.

| what the link showed | the bound in s, between `least_s` and `most_s` |
|---|---|
| nothing yet | `most_s`, from when the neighbour was to speak |
| words in time | until TCP's third repetition: ping + 7 RTO, where RTO is 0.2 + RTT |
| a share p of late words | until its n-th: ping + (2^n - 1) RTO, where p^(n+1) is a millionth |
| a gap | three times as long, for some minutes |

TCP doubles its pause with each repetition that is lost as well, hence the powers. A path that is
replaced under a connection costs it three repetitions (docs/benchmarks.md, "Paths"), so less is
never a fault. A link that nobody knows yet is taken to be late with one word in twenty, so for its
first seconds a fourth repetition is waited for: ping + 3 s + 15 RTT.
"""

from __future__ import annotations

LEAST_S = 1.7
# Linux repeats after the RTT and at least this (TCP_RTO_MIN).
_REPEAT_S = 0.2
# A word so much later than its ping was repeated, or its sender had to wait for a CPU.
_LATE_S = 0.15
_REPEATS_LEAST, _REPEATS_MOST = 3, 10
# A false alarm costs all streams a new ring: not more than one in some days of ten words a second.
_RARE = 1e-6
_LATE_AT_FIRST = 0.05
# Words after which what is known of a link outweighs the guess, and those that count: a minute's.
_WORDS_GUESSED, _WORDS_COUNTED = 50, 300
_GAPS = 3.0
_FORGET_HALF_S = 300.0


class Silence:
    """What is known of how regularly one neighbour is heard; all times in seconds.

    It is to speak each `ping_s` from `since` on; `least_s` and `most_s` bound what is tolerated.
    """

    def __init__(self, least_s: float, most_s: float, ping_s: float, since: float) -> None:
        self._least_s = min(least_s, most_s)
        self._most_s = most_s
        self._ping_s = ping_s
        self._last = since
        self._words = 0
        self._late = _LATE_AT_FIRST
        self._gap_s = 0.0

    @property
    def met(self) -> bool:
        """Whether the neighbour has ever spoken."""
        return self._words > 0

    def heard(self, now: float) -> None:
        """Take note of a word."""
        if self.met:
            self._learn(max(0.0, now - self._last))
        self._words += 1
        self._last = now

    def excuse(self, seconds: float, now: float) -> None:
        """Not count some of the silence: nobody could listen then."""
        if self._last < now:
            self._last = min(now, self._last + seconds)

    def silent_s(self, now: float) -> float:
        """Return for how long nothing was heard."""
        return max(0.0, now - self._last)

    def bound_s(self, rtt_s: float = 0.0) -> float:
        """Return how long that may be on a link of this RTT."""
        if not self.met:
            return self._most_s
        repeats = _REPEATS_LEAST
        while repeats < _REPEATS_MOST and self._late ** (repeats + 1) > _RARE:
            repeats += 1
        tcp_s = self._ping_s + ((1 << repeats) - 1) * (_REPEAT_S + rtt_s)
        return min(self._most_s, max(self._least_s, tcp_s, _GAPS * self._gap_s))

    def too_long(self, now: float, rtt_s: float = 0.0) -> bool:
        """Say whether the neighbour counts as lost."""
        return self.silent_s(now) > self.bound_s(rtt_s)

    def _learn(self, gap_s: float) -> None:
        late = gap_s > self._ping_s + _LATE_S
        weight = 1 / min(_WORDS_GUESSED + self._words, _WORDS_COUNTED)
        self._late += weight * (late - self._late)
        self._gap_s = max(gap_s, self._gap_s * 0.5 ** (gap_s / _FORGET_HALF_S))
