"""Who of the replicas that can serve a request gets it, and what is said of that.

A core without state, used by `router.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from statistics import median

from gateway.routing.breaker import State
from gateway.routing.learned import Learned
from gateway.routing.replicas import Attempt, Need, Picked
from gateway.routing.strategies import STRATEGIES, Candidate

# How much a conversation's last replica may be worse than the best and still get it.
AFFINITY = 0.7
# A choice that is good for the first byte and bad for all that follows is none: a wait for so
# many tokens counts as much as one for the first byte.
ANSWER_TOKENS = 2
# One that nobody has measured is taken for a little better than the others, so that it is tried.
UNTRIED = 0.7
# Estimates of a prompt's tokens may be too high by this much; nobody is refused for them.
ESTIMATE = 0.8


def fitting(need: Need, tokens: float, usable: Sequence[Learned], now: float) -> Sequence[Learned]:
    """Return those that can serve the request, or all where an estimate says none can."""
    for fits in (
        lambda x: x.serves(need.kind, now),
        lambda x: x.holds(tokens * ESTIMATE + need.max_tokens),
        lambda x: not x.breaker.on_trial(now),
    ):
        usable = [x for x in usable if fits(x)] or usable
    return usable


def attempts(
    need: Need, tokens: float, among: Iterable[Learned], having: Iterable[Learned], now: float
) -> dict[str, Attempt]:
    """Return by URL the request as it would be at each; `having` are all that have the model."""
    ordinary = _ordinary(need.streamed, having)
    return {x.replica.url: x.attempt(need, tokens, now, ordinary) for x in among}


def choose(
    strategy: str, among: Sequence[Learned], would: Mapping[str, Attempt], last: str, now: float,
    random: Random,
) -> Learned:  # fmt: skip
    """Return the strategy's choice; `last` is the URL where the conversation was."""
    if len(among) == 1:  # there is nothing to compare
        return among[0]
    candidates = [_candidate(x, would[x.replica.url], last, now) for x in among]
    url = STRATEGIES[strategy](candidates, random).url
    return next(x for x in among if x.replica.url == url)


def others_s(
    chosen: Learned, among: Iterable[Learned], would: Mapping[str, Attempt]
) -> float | None:
    """Return what those beside the choice would take, None where none of them is known."""
    expected = [
        would[x.replica.url].expected_s
        for x in among
        if x is not chosen and x.prediction.known(would[x.replica.url].need.streamed)
    ]
    return median(expected) if expected else None


def sooner(
    among: Iterable[Learned], would: Mapping[str, Attempt], within_s: float, most: int, now: float
) -> Learned | None:
    """Return who is best asked as a second, if its first byte is predicted within so many seconds.

    It is known, well, not late itself, and has places: less than `most` of ours are there.
    """
    able = [
        x
        for x in among
        if x.breaker.state(now) is State.CLOSED
        and x.in_flight < most
        and not would[x.replica.url].late_s
        and x.prediction.known(would[x.replica.url].need.streamed)
    ]
    best = min(able, key=lambda x: would[x.replica.url].expected_s, default=None)
    if best is None or would[best.replica.url].expected_s >= within_s:
        return None
    return best


def picked(x: Learned, attempt: Attempt, *why: str) -> Picked:
    """Return the choice, and the reason in words for the client; the first of `why` goes first."""
    known = x.prediction.known(attempt.need.streamed)
    what = "to the first token" if attempt.need.streamed else "to the answer"
    cached = attempt.cached_tokens
    strategy, *more = why
    said = (
        strategy,
        f"predicted {attempt.expected_s:.2f} s {what}" if known else "not measured yet",
        f"prefix {cached:,.0f} tokens cached" if cached >= 1 else "",
        *more,
    )
    route = "; ".join(filter(None, said))
    soonest_s = x.prediction.soonest_s(attempt.need.streamed, attempt.expected_s)
    return Picked(x.replica, soonest_s if known else None, route, attempt)


def _candidate(x: Learned, attempt: Attempt, last: str, now: float) -> Candidate:
    predicted_s = attempt.expected_s
    if attempt.need.streamed:
        predicted_s += ANSWER_TOKENS * x.prediction.token_s(x.there(now) + 1)
    predicted_s *= x.prediction.fade(attempt.need.streamed, now)
    if attempt.url == last:
        predicted_s *= AFFINITY
    return Candidate(
        attempt.url, predicted_s, x.there(now), x.chosen_last, x.rtt_s, x.replica.context,
        len(x.models),
    )  # fmt: skip


def _ordinary(streamed: bool, having: Iterable[Learned]) -> float | None:
    """Return what a replica nobody has measured is taken for, None: nobody is measured."""
    scales = [x.prediction.scale(streamed) for x in having]
    measured = [scale for scale in scales if scale is not None]
    return median(measured) * UNTRIED if measured else None
