"""When a replica's first byte will come and how fast its tokens follow, from its own requests.

A core. The time to the first byte is taken for a linear law of

    1        the network, HTTP, a first step
    u        the prompt's tokens that are not cached, in thousands: prefill
    w        such tokens of the requests that wait there before it, in thousands: the queue
    n, n²    the requests that are there, others' as well: the share of the machine that is left,
             and places

with coefficients learned by `regression.py`, for streams and whole answers apart: the two are not
comparable. Beside it stands how much slower or faster than that law the last answers were, which
follows a replica that turns slow within a few answers. The time for each further token is a law
of 1 and n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

from gateway.routing.regression import Regression

# A replica that nobody has measured is taken for an ordinary one, so that it gets its share.
UNMEASURED_S = 0.1
UNMEASURED_TOKEN_S = 0.05
# Before much is known: a thousand tokens take four times as long as everything else, and each
# request that is there adds its time.
FIRST_SHAPE = (1.0, 4.0, 4.0, 1.0, 0.1)
TOKEN_SHAPE = (1.0, 0.1)
# An answer time that is not renewed fades, so that a replica that was slow is tried again.
FADE_S = 60.0
# Many requests at once: the quadratic term is scaled to meet the linear one at so many.
SQUARE = 16.0
# The last five or so answers say how things are now, each with a factor of 4 at most.
LEVEL_WEIGHT = 0.2
LEVEL_STEP = math.log(4.0)
LEVEL_MOST = math.log(20.0)
# What made it slow for a while is over more often than not by then.
LEVEL_S = 30.0
# An answer is overdue when it is later than predicted by three times the usual relative error,
# within bounds, and by what a busy machine or a lost packet costs.
LATE, LATE_LEAST, LATE_MOST, LATE_S = 3.0, 0.25, 3.0, 0.05
# Whoever cannot wait is refused only when an answer has never been as early; whole answers, whose
# length nobody knows, vary much.
EARLY, EARLY_MOST = 2.0, 0.9
# Below so many answers a law is a guess and nobody is refused for it.
FEW = 5


def load(uncached_k: float, waiting_k: float, there: float) -> tuple[float, ...]:
    """Return what the time to the first byte depends on, in the order of the table above."""
    return (1.0, uncached_k, waiting_k, there, there * there / SQUARE)


class _FirstByte:
    """One kind of answer of one replica."""

    def __init__(self) -> None:
        self.law = Regression(FIRST_SHAPE, UNMEASURED_S)
        self.level = 0.0
        self.at = -math.inf
        self.ewma_s = 0.0

    def level_at(self, now: float) -> float:
        return self.level * math.exp(-max(now - self.at, 0.0) / LEVEL_S)

    def learn(self, x: Sequence[float], seconds: float, now: float) -> None:
        seconds = max(seconds, 1e-6)
        if self.law.samples:
            self.level = self.level_at(now)
            step = math.log(seconds / max(self.law.predict(x), 1e-6)) - self.level
            self.level += LEVEL_WEIGHT * min(max(step, -LEVEL_STEP), LEVEL_STEP)
            self.level = min(max(self.level, -LEVEL_MOST), LEVEL_MOST)
            self.ewma_s += 0.3 * (seconds - self.ewma_s)
        else:
            self.ewma_s = seconds
        self.law.learn(x, seconds, now)
        self.at = now


class Prediction:
    """What one replica's own requests say of its speed; nothing that failed is told to it."""

    def __init__(self) -> None:
        self._kinds = {streamed: _FirstByte() for streamed in (False, True)}
        self._token = Regression(TOKEN_SHAPE, UNMEASURED_TOKEN_S)

    def first_byte(self, streamed: bool, x: Sequence[float], seconds: float, now: float) -> None:
        """Note an answer whose first byte came `seconds` after it was sent, at the load x."""
        self._kinds[streamed].learn(x, seconds, now)

    def tokens(self, count: int, seconds: float, there: float, now: float) -> None:
        """Note an answer with `count` tokens behind the first, which took `seconds`."""
        if count > 0 and seconds >= 0:
            self._token.learn((1.0, there), seconds / count, now)

    def first_s(
        self, streamed: bool, x: Sequence[float], now: float, ordinary: float | None = None
    ) -> float:
        """Return the seconds to the first byte; `ordinary` is the scale of one not measured."""
        kind = self._kinds[streamed]
        if not kind.law.samples:
            shaped: float = sum(map(mul, FIRST_SHAPE, x))
            return shaped * (UNMEASURED_S if ordinary is None else ordinary)
        return kind.law.predict(x) * math.exp(kind.level_at(now))

    def due_s(self, streamed: bool, predicted_s: float) -> float:
        """Return after how many seconds an answer that was predicted so is overdue."""
        usual = self._kinds[streamed].law.usual
        return predicted_s * (1 + min(max(LATE * usual, LATE_LEAST), LATE_MOST)) + LATE_S

    def soonest_s(self, streamed: bool, predicted_s: float) -> float:
        """Return before how many seconds an answer that was predicted so hardly ever comes."""
        usual = self._kinds[streamed].law.usual
        return predicted_s * (1 - min(EARLY * usual, EARLY_MOST))

    def fade(self, streamed: bool, now: float) -> float:
        """Return what to multiply a prediction with that is compared with others'."""
        kind = self._kinds[streamed]
        return math.exp(-max(now - kind.at, 0.0) / FADE_S) if kind.law.samples else 1.0

    def token_s(self, there: float) -> float:
        """Return the seconds for each token behind the first, with so many requests there."""
        return self._token.predict((1.0, there))

    def scale(self, streamed: bool) -> float | None:
        """Return what a replica nobody has measured may be taken for; None: this one is none."""
        law = self._kinds[streamed].law
        return law.scale if law.samples else None

    def known(self, streamed: bool) -> bool:
        """Say whether the law has seen enough to be relied on."""
        return self._kinds[streamed].law.samples >= FEW

    def prefill_s_per_ktoken(self, streamed: bool) -> float:
        """Return the seconds for a thousand tokens of prompt, to tell how far one in work is."""
        return self._kinds[streamed].law.coefficients[1]

    def view(self) -> dict[str, float]:
        """Return the running mean of the seconds to the first byte, by kind as in `Router.view`."""
        return {
            "stream" if streamed else "whole": round(kind.ewma_s, 6)
            for streamed, kind in sorted(self._kinds.items())
            if kind.law.samples
        }
