"""How long a neighbour may be silent before it counts as lost: by what its link has shown.

A core: time is an argument. For `watch.py`, which hears each neighbour every `ping_s`, however long
llama.cpp computes, so silence is the link's, or the neighbour is frozen, dead or cut off.

| what the link showed | the bound in s, between `least_s` and `most_s` |
|---|---|
| nothing yet | `most_s`, from when the neighbour was to speak |
| words in time | until TCP's third repetition: ping + 7 RTO, where RTO is 0.2 + RTT |
| a share p of late words | until its n-th: ping + (2^n - 1) RTO, where p^(n+1) is a millionth |
| a gap | three times as long, for some minutes |

What was learned outlives the ring (`Known`): the next one that has the same neighbour begins with
it, the less the longer ago that was. A link that was good has to show it anew, in some seconds: a
ring that was just made has more to do than ping.

TCP doubles its pause with each repetition that is lost as well, hence the powers. A path that is
replaced under a connection costs it three repetitions (docs/benchmarks.md, "Paths"), so less is
never a fault. A link that nobody knows yet is taken to be late with one word in twenty, so for its
first seconds a fourth repetition is waited for: ping + 3 s + 15 RTT.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

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


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was learned of a link by `at` (seconds of this machine's monotonic clock).

    `words`: how many count, `late`: which share of them came late, `gap_s`: the longest of late.
    """

    words: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    late: Annotated[float, msgspec.Meta(ge=0, le=1)]
    gap_s: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    at: float

    def together(self, other: Known) -> Known:
        """Return what is known of a neighbour that is heard on two connections."""
        words = self.words + other.words
        late = (self.words * self.late + other.words * other.late) / words if words else self.late
        gap_s = max(self.gap_s, other.gap_s)
        return Known(words, late, gap_s, max(self.at, other.at))

    def later(self, now: float) -> Known:
        """Return what is left of it later."""
        left = 0.5 ** (max(0.0, now - self.at) / _FORGET_HALF_S)
        late = _LATE_AT_FIRST + left * (self.late - _LATE_AT_FIRST)
        return Known(left * self.words, late, left * self.gap_s, now)


class Silence:
    """What is known of how regularly one neighbour is heard; all times in seconds.

    It is to speak each `ping_s` from `since` on; `least_s` and `most_s` bound what is tolerated.
    `known` was learned of it before.
    """

    def __init__(
        self, least_s: float, most_s: float, ping_s: float, since: float,
        known: Known | None = None,
    ) -> None:  # fmt: skip
        self._least_s = min(least_s, most_s)
        self._most_s = most_s
        self._ping_s = ping_s
        self._last = since
        self._words = 0
        self._counted, self._late, self._gap_s = 0.0, _LATE_AT_FIRST, 0.0
        if known is not None:
            left = known.later(since)
            self._gap_s = left.gap_s
            if left.late > _LATE_AT_FIRST:
                self._counted, self._late = left.words, left.late

    @property
    def met(self) -> bool:
        """Whether the neighbour has ever spoken."""
        return self._words > 0

    @property
    def known(self) -> Known | None:
        """What was learned until its last word; None where it has not spoken twice."""
        return (
            Known(self._counted, self._late, self._gap_s, self._last) if self._words > 1 else None
        )

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
        self._counted = min(self._counted + 1, _WORDS_COUNTED)
        weight = 1 / min(_WORDS_GUESSED + self._counted, _WORDS_COUNTED)
        self._late += weight * (late - self._late)
        self._gap_s = max(gap_s, self._gap_s * 0.5 ** (gap_s / _FORGET_HALF_S))
