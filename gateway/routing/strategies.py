"""How one replica is chosen of those that can serve a request.

A core. Each strategy is a function of the candidates and a source of randomness:

latency_aware     the least predicted time to the first byte and for the answer's tokens, of two
                  at random of those that are nearly the best
round_robin       the one whose turn is longest ago
least_loaded      the one with the fewest requests that are there now
capability_based  the one with the most room: the largest context, then the fewest other models
geo_proximity     the one that is nearest: the least round trip over the network
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

# Predictions are not exact, and several gateways must not all run to the same replica.
NEAR = 1.15
NEAR_S = 0.002
# Round trips that differ by less than this are the same place.
SAME_PLACE_S = 0.002


@dataclass(frozen=True)
class Candidate:
    """What a strategy sees of a usable replica.

    `predicted_s` is what to compare: seconds to the first byte and for tokens, less what speaks
    for it; `there` is how many requests are at it. `rtt_s` None: not measured; `context` in tokens,
    None: not known; `models`: how many.
    """

    url: str
    predicted_s: float
    there: float
    chosen_last: int
    rtt_s: float | None = None
    context: int | None = None
    models: int = 1


Strategy = Callable[[Sequence[Candidate], Random], Candidate]


def latency_aware(candidates: Sequence[Candidate], random: Random) -> Candidate:
    """Choose the least predicted time of two at random among the near-best."""
    bound = min(candidate.predicted_s for candidate in candidates) * NEAR + NEAR_S
    near = [candidate for candidate in candidates if candidate.predicted_s <= bound]
    two = random.sample(near, min(2, len(near)))
    return min(two, key=lambda candidate: candidate.predicted_s)


def round_robin(candidates: Sequence[Candidate], random: Random) -> Candidate:
    """Choose the one whose turn is longest ago."""
    return min(candidates, key=lambda candidate: (candidate.chosen_last, candidate.url))


def least_loaded(candidates: Sequence[Candidate], random: Random) -> Candidate:
    """Choose the one with the fewest requests, in turn where several have as few."""
    return min(candidates, key=lambda candidate: (candidate.there, candidate.chosen_last))


def capability_based(candidates: Sequence[Candidate], random: Random) -> Candidate:
    """Choose the largest context, then the fewest models, then the least predicted time."""
    return min(
        candidates,
        key=lambda candidate: (-(candidate.context or 0), candidate.models, candidate.predicted_s),
    )


def geo_proximity(candidates: Sequence[Candidate], random: Random) -> Candidate:
    """Choose the nearest, and of those in one place the least predicted time."""
    nearest = min(math.inf if c.rtt_s is None else c.rtt_s for c in candidates)
    there = [
        candidate
        for candidate in candidates
        if nearest == math.inf
        or (candidate.rtt_s is not None and candidate.rtt_s <= nearest + SAME_PLACE_S)
    ]
    return min(there, key=lambda candidate: candidate.predicted_s)


STRATEGIES: dict[str, Strategy] = {
    "latency_aware": latency_aware,
    "round_robin": round_robin,
    "least_loaded": least_loaded,
    "capability_based": capability_based,
    "geo_proximity": geo_proximity,
}
