"""How many batches of how many rows serve those who decode fastest, by what batches take. A core.

A token of one answer needs the one before, so each answer is in one batch at a time, and comes
round again when that batch is back. With `n` answers in `k` batches of `b` = ⌈n/k⌉ rows each:

    round = max(k · (own(b) + ours) + n · sample,   what this process has to do in a round
                k · (stage(b) + ours),              what the slowest other one has to
                own(b) + ours + away(b))            how long a batch alone is on its way

with what our own code takes for a batch, of one row or of eight, as `ours`.

Small batches fill the ring while frames travel; large ones share the reading of the weights. How
much sharing is worth depends on the CPU: where two rows take three times as long as one, eight
batches of one row beat two of four. Where a round leaves room, or wider batches cost little, rows
of guesses (`drafts.py`) fill it, if by the chance that they are right they make more tokens a
second. So `calibrate` in `generator.py` has batches of several sizes
computed before the first request, one at a time, and an empty one, which shows the links alone;
the least and the largest first, since a size between two known ones is guessed well, and one
beyond them badly. What batches really take later (longer contexts, a busier machine) moves all
sizes alike; and a split that was used counts by what its rounds took (`rounds.py`).

A draft model's guesses are made by this process, one after the other: with `d(m)` for a batch of
the `m` answers of one batch, and `g` guesses in a round, ⌈g/m⌉ · d(m) is added to what it computes,
and a `k`th of that to how long a batch alone is on its way: its guesses are made before it goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from agent.engine.draft_costs import DraftCosts, between
from agent.engine.rounds import Rounds

# Sizes between are interpolated.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Of which it is known of each device what they take there, for plans (`speeds.py`).
BATCHES = (2, 4, 8, 16)
# How long to measure, how many batches of a size, and what takes so long that its set-up is no
# matter: the first of a size has llama.cpp set up its work, a slow one met other work.
CALIBRATION_S, _OF_A_SIZE, _LONG_S = 3.0, 3, 0.5
# While a request waits: one batch of a size, and the least and the largest alone after so long.
HURRIED_S = 0.5
# Another split must be so much better: each change of it mixes up who is with whom.
_GAIN = 0.05
_NEWEST = 0.1
# Guesses must make so much more: what they make is estimated from two estimates.
_GUESS_GAIN = 0.1
_HIT_MOST = 0.98
# What a draft model reads at once delays others by so much of a lone row's round.
_READ_SHARE = 0.25
_READ_ROWS, _READ_LEAST = 64, 8
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
    """So many batches at once, of so many rows at most; `guesses`: filled up with such rows.

    `drafting`: a draft model makes those that n-grams do not.
    """

    batches: int
    rows: int
    guesses: bool = False
    drafting: bool = False


class Drafted(NamedTuple):
    """How likely the next guess is if a draft model makes this share of them."""

    hit: float
    share: float


_UNDRAFTED = Drafted(0.0, 0.0)


class Calibration:
    """Which sizes to measure before the first request, up to `most` rows, and for how long.

    Ask `next` for the size of the next batch, give what it took to `add`, until there is none.
    However slow the model is, the least and the largest size are measured.
    """

    def __init__(self, most: int) -> None:
        self._order = widest_first([size for size in SIZES if size <= most])
        self._found: dict[int, list[Measured]] = {size: [] for size in self._order}

    def next(self, spent_s: float, *, hurried: bool = False) -> int | None:
        """Return how many rows the next batch shall have, after `spent_s` in all.

        `hurried`: a request waits; what is left out then comes later.
        """
        long = spent_s > (HURRIED_S if hurried else CALIBRATION_S)
        for at, size in enumerate(self._order):
            found = self._found[size]
            if long and at > 1:
                return None
            wanted = 1 if hurried else 2 if long else _OF_A_SIZE
            if not found or (len(found) < wanted and _taken(found[0]) < _LONG_S):
                return size
        return None

    def add(self, measured: Measured) -> None:
        """Take what a batch took."""
        self._found[measured.rows].append(measured)

    @property
    def best(self) -> list[Measured]:
        """What the fastest of each size took."""
        return [min(found, key=_taken) for found in self._found.values() if found]


class Pace:
    """Chooses the split; `depth` is the number of processes in the ring, this one included.

    Before `learn`, it is `depth` batches.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._measured: list[Measured] = []
        self.links_s = 0.0  # what an empty batch was away for
        self._level = 1.0
        self._sample_s = 0.0
        self._ours_s = 0.0
        self._last: tuple[int, Split] | None = None
        # A choice holds for a while: to make one takes longer than to make a batch.
        self._chosen: dict[tuple[int, int, int, int, int], Split] = {}
        self._taken = 0
        self.drafts = DraftCosts()
        self.rounds = Rounds()

    def learn(self, measured: list[Measured], links_s: float) -> None:
        """Take what batches of growing size took; `links_s`: what an empty one was away for."""
        self._measured = sorted(measured, key=lambda each: each.rows)
        self.links_s = links_s
        self._last = None
        self._chosen.clear()

    def took(self, rows: int, own_s: float, sampling_s: float, ours_s: float = 0.0) -> None:
        """Take what a batch of decoding rows took in this process's parts, and to choose tokens.

        `ours_s`: what our own code took for it, however many rows it has.
        """
        expected = self._at(rows)[0] if self._measured else 0.0
        if expected > 0.0:
            self._level += _NEWEST * (own_s / expected - self._level)
        self._sample_s += _NEWEST * (sampling_s / rows - self._sample_s)
        self._ours_s += _NEWEST * (ours_s - self._ours_s)
        self._noted()

    def drafted(self, rows: int, seconds: float) -> None:
        """Take what a batch of the draft model took."""
        self.drafts.took(rows, seconds)
        self._noted()

    def _noted(self) -> None:
        self._taken += 1
        if self._taken % _CHOICES_HOLD == 0:
            self._chosen.clear()

    def split(
        self, decoding: int, most: int, hit: float = 0.0, drafted: Drafted = _UNDRAFTED
    ) -> Split:
        """Return how to serve so many answers, with at most `most` rows a batch.

        `hit`: how likely the next guess is to be right, and after it each further one; `drafted`:
        the same with a draft model.
        """
        hits = [round(number * _HIT_STEPS) for number in (hit, *drafted)]
        key = decoding, most, hits[0], hits[1], hits[2]
        if key not in self._chosen:
            plain, *model = (number / _HIT_STEPS for number in hits)
            self._chosen[key] = self._choose(decoding, most, plain, Drafted(*model))
        return self._chosen[key]

    def pays_back(self, unknown: int, left: int) -> bool:
        """Say whether a draft model's gain makes up for `unknown` tokens that it has to read first.

        `left`: how many tokens the answer may still get. The gain is the least one that counts.
        """
        if not self._measured or not self.drafts.known:
            return False
        reading_s = self.drafts.seconds(_READ_ROWS) * unknown / _READ_ROWS
        return reading_s <= _GUESS_GAIN * left * self.round_s(1, Split(1, 1))

    def reading_rows(self, most: int) -> int:
        """Return how many rows of a draft model hold nobody up for long."""
        return self.drafts.rows_in(_READ_SHARE * self.round_s(1, Split(1, 1)), most, _READ_LEAST)

    def _choose(self, decoding: int, most: int, hit: float, drafted: Drafted) -> Split:
        if decoding < 1:
            return Split(self._depth, 1)
        if not self._measured:
            rows = min(-(-decoding // self._depth), most)
            return Split(max(self._depth, -(-decoding // most)), rows)
        found = {
            split: self.rounds.took_s(decoding, split) or self.round_s(decoding, split)
            for split in _splits(decoding, most)
        }
        best = min(found, key=lambda split: found[split])
        if self._last is not None and self._last[0] == decoding and self._last[1] in found:
            before = self._last[1]
            if found[best] > (1 - _GAIN) * found[before]:
                best = before
        self._last = decoding, best
        rate = decoding / self.round_s(decoding, best)
        chances = [Drafted(hit, 0.0)]
        if self.drafts.known and drafted.share:
            chances.append(drafted)
        for chance in chances:
            split, more = self._guessing(decoding, most, chance, best.batches)
            # It has to be clearly more; a draft model's than what n-grams make, too.
            if more > (1 + _GUESS_GAIN) * rate:
                best, rate = split, more
        return best

    def _guessing(
        self, decoding: int, most: int, chance: Drafted, batches: int
    ) -> tuple[Split, float]:
        """Return the split with guesses that makes the most tokens a second, and how many."""
        hit = min(chance.hit, _HIT_MOST)
        if not hit:
            return Split(batches, 1), 0.0
        found: dict[Split, float] = {}
        for rows in (size for size in SIZES if size <= most):
            fills = self._fills(rows)
            counts = {batches, fills}
            if chance.share:
                # What makes guesses may be busy with fewer than would fill the ring.
                counts |= {size for size in SIZES if size < fills}
            for count in counts:
                if decoding < count * rows:
                    split = Split(count, rows, guesses=True, drafting=chance.share > 0)
                    tokens = decoding * (1.0 - math.pow(hit, count * rows / decoding)) / (1.0 - hit)
                    found[split] = tokens / self.round_s(
                        tokens, split, chance.share * self._drafting_s(decoding, split)
                    )
        if not found:
            return Split(batches, 1), 0.0
        fastest = max(found, key=lambda split: found[split])
        return fastest, found[fastest]

    def _drafting_s(self, decoding: int, split: Split) -> float:
        """Return how long a draft model takes for all guesses of a round."""
        answers = -(-decoding // split.batches)
        guesses = split.batches * split.rows
        if self._depth == 1:
            # Each batch begins with what the one before it said. In a ring it is on its way before.
            guesses -= decoding
        return math.ceil(guesses / answers) * self.drafts.seconds(answers)

    def _fills(self, rows: int) -> int:
        """Return how many batches of so many rows are under way before one has to wait."""
        if self._depth == 1:
            return 1
        own, _, stage = self._costs(rows)
        busiest = max(own + rows * self._sample_s, stage) + self._ours_s
        return max(1, int(self.round_s(rows, Split(1, rows)) / busiest))

    def round_s(self, tokens: float, split: Split, drafting_s: float = 0.0) -> float:
        """Return how long a round takes that gives so many tokens, in seconds.

        `drafting_s`: what making its guesses takes.
        """
        own, away, stage = self._costs(split.rows)
        # A stage's own code takes for a batch about what this one's does.
        own, stage = own + self._ours_s, stage + self._ours_s
        busy = split.batches * own + tokens * self._sample_s + drafting_s
        alone = own + away + self.links_s + split.rows * self._sample_s
        return max(busy, split.batches * stage, alone + drafting_s / split.batches)

    def _costs(self, rows: int) -> tuple[float, float, float]:
        """Return what a batch takes now: here, in all the others, and in one of those."""
        own, away = (self._level * seconds for seconds in self._at(rows))
        others = self._depth - 1
        return own, away, away / others if others else 0.0

    def _at(self, rows: int) -> tuple[float, float]:
        """Return what a batch takes here, and in all the others without the links."""
        own = [(float(m.rows), m.own_s) for m in self._measured]
        away = [(float(m.rows), max(0.0, m.away_s - self.links_s)) for m in self._measured]
        return between(own, rows), between(away, rows)


def widest_first(sizes: Sequence[int]) -> list[int]:
    """Return sizes, which grow, in another order: both ends, then the middle of the widest gap."""
    places = [0, len(sizes) - 1][: len(sizes)]
    while len(places) < len(sizes):
        gaps = pairwise(sorted(places))
        low, high = max(gaps, key=lambda gap: gap[1] - gap[0])
        places.append((low + high) // 2)
    return [sizes[place] for place in places]


def _taken(measured: Measured) -> float:
    return measured.own_s + measured.away_s


def _splits(decoding: int, most: int) -> Iterator[Split]:
    for batches in range(-(-decoding // most), decoding + 1):
        rows = -(-decoding // batches)
        # Of those with equal rows, more batches would only be emptier.
        if batches == -(-decoding // rows):
            yield Split(batches, rows)
