"""How many batches of how many rows serve those who decode fastest, by what batches take. A core.

A token of one answer needs the one before, so each answer is in one batch at a time, and comes
round again when that batch is back. With `n` answers in `k` batches of `b` = ⌈n/k⌉ rows each:

    round = max(k · own(b) + n · sample,   what this process has to compute in a round
                k · stage(b),              what the slowest other one has to
                own(b) + away(b))          how long a batch alone is on its way

Small batches fill the ring while frames travel; large ones share the reading of the weights. How
much sharing is worth depends on the CPU: where two rows take three times as long as one, eight
batches of one row beat two of four. Where a round leaves room, or wider batches cost little, rows
of guesses (`drafts.py`) fill it, if by the chance that they are right they make more tokens a
second. So `calibrate` in `generator.py` has batches of several sizes
computed before the first request, one at a time, and an empty one, which shows the links alone.
What batches really take later (longer contexts, a busier machine) moves all sizes alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

# Sizes between are interpolated.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Another split must be so much better: each change of it mixes up who is with whom.
_GAIN = 0.05
_NEWEST = 0.1
# Guesses must make so much more: what they make is estimated from two estimates.
_GUESS_GAIN = 0.1
_HIT_MOST = 0.98
_HIT_STEPS = 20
_CHOICES_HOLD = 32


@dataclass(frozen=True)
class Measured:
    """What one batch took: seconds in this process's parts, and away from it, with the links."""

    rows: int
    own_s: float
    away_s: float


@dataclass(frozen=True)
class Split:
    """So many batches at once, of so many rows at most; `guesses`: filled up with such rows."""

    batches: int
    rows: int
    guesses: bool = False


class Pace:
    """Chooses the split; `depth` is the number of processes in the ring, this one included.

    Before `learn`, it is `depth` batches.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._measured: list[Measured] = []
        self._links_s = 0.0
        self._level = 1.0
        self._sample_s = 0.0
        self._last: tuple[int, Split] | None = None
        # A choice holds for a while: to make one takes longer than to make a batch.
        self._chosen: dict[tuple[int, int, int], Split] = {}
        self._taken = 0

    def learn(self, measured: list[Measured], links_s: float) -> None:
        """Take what batches of growing size took; `links_s`: what an empty one was away for."""
        self._measured = sorted(measured, key=lambda each: each.rows)
        self._links_s = links_s
        self._last = None
        self._chosen.clear()

    def took(self, rows: int, own_s: float, sampling_s: float) -> None:
        """Take what a batch of decoding rows took in this process's parts, and to choose tokens."""
        expected = self._at(rows)[0] if self._measured else 0.0
        if expected > 0.0:
            self._level += _NEWEST * (own_s / expected - self._level)
        self._sample_s += _NEWEST * (sampling_s / rows - self._sample_s)
        self._taken += 1
        if self._taken % _CHOICES_HOLD == 0:
            self._chosen.clear()

    def split(self, decoding: int, most: int, hit: float = 0.0) -> Split:
        """Return how to serve so many answers, with at most `most` rows a batch.

        `hit`: how likely the next guess is to be right, and after it each further one.
        """
        key = decoding, most, round(hit * _HIT_STEPS)
        if key not in self._chosen:
            self._chosen[key] = self._choose(decoding, most, key[2] / _HIT_STEPS)
        return self._chosen[key]

    def _choose(self, decoding: int, most: int, hit: float) -> Split:
        if decoding < 1:
            return Split(self._depth, 1)
        if not self._measured:
            rows = min(-(-decoding // self._depth), most)
            return Split(max(self._depth, -(-decoding // most)), rows)
        found = {split: self.round_s(decoding, split) for split in _splits(decoding, most)}
        best = min(found, key=lambda split: found[split])
        if self._last is not None and self._last[0] == decoding and self._last[1] in found:
            before = self._last[1]
            if found[best] > (1 - _GAIN) * found[before]:
                best = before
        self._last = decoding, best
        return self._guessing(decoding, most, min(hit, _HIT_MOST), best) if hit else best

    def _guessing(self, decoding: int, most: int, hit: float, best: Split) -> Split:
        """Return the split with guesses that makes the most tokens a second, if it is clearly more
        than the `best` without.
        """

        def rate(split: Split) -> float:
            each = split.batches * split.rows / decoding
            tokens = decoding * (1.0 - math.pow(hit, each)) / (1.0 - hit)
            return tokens / self.round_s(tokens, split)

        found = {
            split: rate(split)
            for rows in SIZES
            if rows <= most
            for batches in {best.batches, self._fills(rows)}
            if decoding < (split := Split(batches, rows, guesses=True)).batches * rows
        }
        if not found:
            return best
        fastest = max(found, key=lambda split: found[split])
        without = decoding / self.round_s(decoding, best)
        return fastest if found[fastest] > (1 + _GUESS_GAIN) * without else best

    def _fills(self, rows: int) -> int:
        """Return how many batches of so many rows are under way before one has to wait."""
        if self._depth == 1:
            return 1
        own, _, stage = self._costs(rows)
        busiest = max(own + rows * self._sample_s, stage)
        return max(1, int(self.round_s(rows, Split(1, rows)) / busiest))

    def round_s(self, tokens: float, split: Split) -> float:
        """Return how long a round takes that gives so many tokens, in seconds."""
        own, away, stage = self._costs(split.rows)
        sample = tokens * self._sample_s
        alone = own + away + self._links_s + split.rows * self._sample_s
        return max(split.batches * own + sample, split.batches * stage, alone)

    def _costs(self, rows: int) -> tuple[float, float, float]:
        """Return what a batch takes now: here, in all the others, and in one of those."""
        own, away = (self._level * seconds for seconds in self._at(rows))
        others = self._depth - 1
        return own, away, away / others if others else 0.0

    def _at(self, rows: int) -> tuple[float, float]:
        """Return what a batch takes here, and in all the others without the links."""
        points = [(m.rows, m.own_s, max(0.0, m.away_s - self._links_s)) for m in self._measured]
        below = [point for point in points if point[0] <= rows]
        above = [point for point in points if point[0] >= rows]
        if not below:
            return above[0][1], above[0][2]
        low = below[-1]
        if not above:
            scale = rows / low[0]
            return low[1] * scale, low[2] * scale
        high = above[0]
        part = (rows - low[0]) / (high[0] - low[0]) if high[0] > low[0] else 0.0
        return low[1] + part * (high[1] - low[1]), low[2] + part * (high[2] - low[2])


def _splits(decoding: int, most: int) -> Iterator[Split]:
    for batches in range(-(-decoding // most), decoding + 1):
        rows = -(-decoding // batches)
        # Of those with equal rows, more batches would only be emptier.
        if batches == -(-decoding // rows):
            yield Split(batches, rows)
