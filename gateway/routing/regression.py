"""A linear law without negative coefficients, learned online: the last fifty or so samples count.

A core. Least squares of relative errors, since a law has to be right for times of 10 ms and of
10 s; with forgetting by samples and by time; drawn towards proportions that are known beforehand
(the `shape`), whose size follows from the very first sample; an outlier weighs little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

FORGET = 0.98
# What was learned before a long silence weighs less than what is seen after it.
FORGET_S = 300.0
# How many samples' relative error a coefficient may cost that is twice what the shape says.
RIDGE = 0.02
# Errors beyond three times the usual one weigh less the larger they are (Huber).
OUTLIER = 3.0
_USUAL_WEIGHT, _USUAL_LEAST = 0.1, 0.02
# Each sweep goes on from where the last sample's ended; at the beginning much changes at once.
_SWEEPS, _SWEEPS_FIRST, _FIRST = 2, 8, 32
_TINY = 1e-9


class Regression:
    """`predict(x)` is the scalar product of x and the coefficients, all of them at least 0."""

    def __init__(self, shape: Sequence[float], scale: float) -> None:
        self._shape = tuple(shape)
        self._scale = scale
        size = len(shape)
        self.coefficients = [scale * part for part in shape]
        self._products = [[0.0] * size for _ in range(size)]
        self._sums = [0.0] * size
        self._seen, self._fitted = 0.0, 0.0
        self.usual = 1.0  # the usual relative error
        self._at = -math.inf
        self.samples = 0

    @property
    def scale(self) -> float:
        """How many times the shape the samples are, over all; the prior's as long as there is none.

        It compares replicas that have been measured with those that have not.
        """
        return self._seen / self._fitted if self._fitted > 0 else self._scale

    def predict(self, x: Sequence[float]) -> float:
        """Return the value at x."""
        value: float = sum(map(mul, self.coefficients, x))
        return value

    def learn(self, x: Sequence[float], y: float, now: float) -> None:
        """Take the sample y ≥ 0 at x."""
        expected = self.predict(x) if self.samples else y
        level = max(expected, y / 3, _TINY)
        weight = level**-2
        error = abs(y - expected) / level
        if self.samples > len(x) and error > OUTLIER * self.usual:
            weight *= OUTLIER * self.usual / error
            error = OUTLIER * self.usual
        self.usual += max(_USUAL_WEIGHT, 1 / (self.samples + 1)) * (error - self.usual)
        self.usual = max(self.usual, _USUAL_LEAST)
        silent_s = now - self._at if self.samples else 0.0
        self._add(x, y, weight, FORGET * math.exp(-max(silent_s, 0.0) / FORGET_S))
        self._at = now
        self.samples += 1
        self._solve()

    def _add(self, x: Sequence[float], y: float, weight: float, keep: float) -> None:
        for row, (products, part) in enumerate(zip(self._products, x, strict=True)):
            weighted = weight * part
            for column, other in enumerate(x):
                products[column] = products[column] * keep + weighted * other
            self._sums[row] = self._sums[row] * keep + weighted * y
        shaped = sum(map(mul, self._shape, x))
        self._seen = self._seen * keep + weight * shaped * y
        self._fitted = self._fitted * keep + weight * shaped * shaped

    def _solve(self) -> None:
        """Improve the coefficients one after the other, from where they were."""
        scale = max(self.scale, _TINY)
        found = self.coefficients
        priors = [scale * part for part in self._shape]
        # The shape may be far off: the more a coefficient has grown, the less it is drawn back.
        pulls = [RIDGE / max(p, c, _TINY) ** 2 for p, c in zip(priors, found, strict=True)]
        for _ in range(_SWEEPS_FIRST if self.samples <= _FIRST else _SWEEPS):
            for row, products in enumerate(self._products):
                others = sum(map(mul, products, found)) - products[row] * found[row]
                wanted = self._sums[row] + pulls[row] * priors[row] - others
                found[row] = max(wanted / (products[row] + pulls[row]), 0.0)
