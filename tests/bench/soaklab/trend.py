"""Whether a figure grows: the trend of its samples, which single ones do not bend. A core.

The slope is the median of those between all pairs of samples (Theil and Sen): a third of them may
be anything, such as what a process holds while it answers.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# An hour of samples has 180: 16,000 pairs.
_FEWEST = 4


@dataclass(frozen=True)
class Trend:
    """A slope (units a second) over so many seconds, and what it comes to over all of them."""

    slope: float
    over_s: float

    @property
    def rise(self) -> float:
        """How much more there was at the end, by the slope."""
        return self.slope * self.over_s


def trend(samples: Sequence[tuple[float, float]]) -> Trend | None:
    """Return the trend of (seconds, value) in the order of time; None for too few of them."""
    if len(samples) < _FEWEST or samples[-1][0] <= samples[0][0]:
        return None
    slopes = [
        (value - earlier_value) / (at - earlier)
        for number, (at, value) in enumerate(samples)
        for earlier, earlier_value in samples[:number]
        if at > earlier
    ]
    return Trend(statistics.median(slopes), samples[-1][0] - samples[0][0])
