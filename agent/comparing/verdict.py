"""Go, no go, or not decided: how much faster one server was than the other. A core.

Runs come in rounds in which all servers were asked one right after the other, so that what else the
machines did meets all. Each round has a ratio; the speed-up is their median. Of few rounds nobody
knows the median that many would have, but where it is: between two of the ordered ratios, chosen so
that it is in between nine times of ten, whatever the noise is like (the sign test's interval; of
five rounds the least and the most, of more the outermost are left out). Where the threshold lies in
between, the noise is larger than the difference and nothing is decided; nor by fewer rounds than
LEAST_ROUNDS.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from agent.comparing.timing import Run, figures

LEAST_ROUNDS = 3
_SURE = 0.9
Outcome = Literal["go", "no go", "undecided"]


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came out. Speed-ups are per cent more tokens a second; negative: slower.

    `speedup_percent_range` is where the speed-up is, and `rounds` how many there were.
    """

    outcome: Outcome
    speedup_percent: float
    speedup_percent_range: tuple[float, float]
    first_token_percent: float
    threshold_percent: float
    rounds: int


def verdict(pairs: Sequence[tuple[Run, Run]], threshold_percent: float) -> Verdict:
    """Return the verdict on pairs (ours, theirs), one at least.

    `first_token_percent` is how much less time the first token takes, in per cent of theirs.
    """
    ups = [100 * (ours.tokens_s / theirs.tokens_s - 1) for ours, theirs in pairs]
    ours, theirs = figures([o for o, _ in pairs]), figures([t for _, t in pairs])
    low, high = interval(ups)
    outcome: Outcome = "go" if low >= threshold_percent else "no go"
    if len(ups) < LEAST_ROUNDS or low < threshold_percent <= high:
        outcome = "undecided"
    return Verdict(
        outcome=outcome,
        speedup_percent=statistics.median(ups),
        speedup_percent_range=(low, high),
        first_token_percent=100 * (1 - ours.first_token_s / theirs.first_token_s),
        threshold_percent=threshold_percent,
        rounds=len(ups),
    )


def overall(outcomes: Sequence[Outcome]) -> Outcome:
    """Return what several verdicts come to: go where all say so, no go where any does."""
    for worst in ("no go", "undecided"):
        if worst in outcomes:
            return worst
    return "go"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return between which of the values the true median is, nine times of ten.

    Of fewer than five values the least and the most are less sure than that.
    """
    ordered, count = sorted(values), len(values)
    dropped, tail = 0, 0.0
    while dropped < count // 2:
        # That the true median is beyond the next one: as if a coin fell one way so often.
        tail += math.comb(count, dropped) / 2**count
        if 1 - 2 * (tail + math.comb(count, dropped + 1) / 2**count) < _SURE:
            break
        dropped += 1
    return ordered[dropped], ordered[count - 1 - dropped]
