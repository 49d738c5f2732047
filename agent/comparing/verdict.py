"""Go, or no go: how much faster one server was than the other, and how sure that is. A core.

Runs come in pairs that were made one right after the other, so that what else the machines did
meets both. Each pair has a ratio; the speed-up is their median. It is sure where all pairs are on
the same side of the threshold.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from agent.comparing.timing import Figures, Run, figures


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came out. Speed-ups are per cent more tokens a second; negative: slower."""

    ours: Figures
    theirs: Figures
    speedup_percent: float
    speedup_percent_range: tuple[float, float]
    first_token_percent: float
    threshold_percent: float
    go: bool
    sure: bool


def verdict(pairs: Sequence[tuple[Run, Run]], threshold_percent: float) -> Verdict:
    """Return the verdict on pairs (ours, theirs), one at least.

    `first_token_percent` is how much less time the first token takes, in per cent of theirs.
    """
    ups = [100 * (ours.tokens_s / theirs.tokens_s - 1) for ours, theirs in pairs]
    ours, theirs = figures([o for o, _ in pairs]), figures([t for _, t in pairs])
    speedup = statistics.median(ups)
    sides = {up >= threshold_percent for up in ups}
    return Verdict(
        ours=ours,
        theirs=theirs,
        speedup_percent=speedup,
        speedup_percent_range=(min(ups), max(ups)),
        first_token_percent=100 * (1 - ours.first_token_s / theirs.first_token_s),
        threshold_percent=threshold_percent,
        go=speedup >= threshold_percent,
        sure=len(sides) == 1,
    )
