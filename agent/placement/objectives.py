"""What a ring is good for, and the best one for each objective.

A core. For one stream a token takes the sum of all parts and hops, the one back to the head
included (`latency`). For `streams` answers at once their rows go round in `groups` frames of
`streams / groups` rows, rounded up; a round of all of them takes

    max(groups · slowest node, the way round of one frame)

with as many groups (a power of two, or one for each stream) as make it shortest: tokens/s are
streams by that (`throughput`). `auto` is the ring of the least latency, unless the ring of the
highest throughput makes at least 20 % more tokens/s, and one stream's token takes at most 10 %
longer in it. For one stream all three are the same.

`throughput` is found by asking whether a ring exists whose round is shorter than some time, which
is a search for the cheapest ring among parts that are short enough, and halving the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from agent.placement import refine
from agent.placement.inputs import Objective
from agent.placement.prices import Prices, Tables
from agent.placement.search import Budget, Found, Ring, Search, price

MORE_THROUGHPUT = 1.2
MORE_LATENCY = 1.1
# A round that is shorter by less than this is the same.
_EXACT = 1e-9
# Interval at which halving ends; from there each ring found shortens it.
_NEAR = 1e-3


@dataclass(frozen=True)
class Choice:
    """A ring, what it is predicted to do, and how far it may be from the best.

    `token_s`: of one stream; `round_s` and `groups`: of all streams, see the module. `gap`: the
    best ring is better by this share at most (0.03: 3 %).
    """

    ring: Ring
    token_s: float
    round_s: float
    groups: int
    gap: float


class Chooser:
    """Finds rings for one problem. `most` and `least` count nodes, the head included."""

    def __init__(self, prices: Prices, budget: Budget) -> None:
        self._prices, self._budget = prices, budget
        self._tables: dict[int, Tables] = {}
        self._streams = prices.aims.streams

    @cached_property
    def groups(self) -> list[int]:
        """How many frames the streams may be split over."""
        powers = [1 << power for power in range(self._streams.bit_length())]
        return sorted({self._streams, *powers})

    def tables(self, rows: int) -> Tables:
        """Return the costs for frames of so many rows."""
        if rows not in self._tables:
            self._tables[rows] = self._prices.decoding(rows)
        return self._tables[rows]

    def best(
        self, objective: Objective, least: int = 1, most: int | None = None,
        must: Sequence[int] = (), exact: bool = True,
    ) -> Choice | None:  # fmt: skip
        """Return the best ring; None where none is possible. Not `exact`: within a thousandth."""
        fastest = self.latency(least, most, must)
        if fastest is None or objective == "latency" or self._streams == 1:
            return fastest
        busiest = self.throughput(fastest, least, most, must, exact)
        if objective == "throughput":
            return busiest
        more = busiest.round_s * MORE_THROUGHPUT <= fastest.round_s
        return busiest if more and busiest.token_s <= fastest.token_s * MORE_LATENCY else fastest

    def latency(
        self, least: int = 1, most: int | None = None, must: Sequence[int] = ()
    ) -> Choice | None:
        """Return the ring in which a token of one stream takes the shortest time."""
        tables = self.tables(1)
        found = Search(tables, self._budget, least=least, most=most, must=must).run()
        if found.ring is None:
            return None
        ring = self._settled(found.ring, tables, found.ring.cost)
        return self._choice(ring, found.ring.cost / found.bound - 1)

    def throughput(
        self, start: Choice, least: int = 1, most: int | None = None, must: Sequence[int] = (),
        exact: bool = True,
    ) -> Choice:  # fmt: skip
        """Return the ring in which a round of all streams is shortest; any one to start from."""
        best, proved = start, []
        # A frame of several rows takes no less than one of one row.
        sure = start.token_s / (1 + start.gap)
        for groups in self.groups:
            best, bound = self._shortest(groups, best, (least, most, must), exact)
            proved.append(max(sure, bound))
        # Of the rings whose round is as short, that in which a frame is back first.
        limit = best.round_s * (1 + _EXACT)
        tables = self.tables(self._rows(best.groups)).within(limit / best.groups)
        again = Search(tables, self._budget, least=least, most=most, must=must).run().ring
        ring = self._settled(again or best.ring, tables, again.cost if again else limit)
        settled = self._choice(ring, 0.0)
        gap = max(0.0, settled.round_s / min(settled.round_s, *proved) - 1)
        return self._choice(ring, gap)

    def priced(self, ring: Ring) -> Choice:
        """Return what a ring is predicted to do."""
        return self._choice(ring, 0.0)

    def slowest(self, ring: Ring, rows: int) -> float:
        """Return how long the slowest node of a ring is busy with a frame."""
        tables = self.tables(rows)
        if not ring.way:
            return float(tables.whole[ring.head])
        parts = (tables.parts[part] for part in ring.way)
        return float(max(tables.heads[ring.head, ring.way[-1][2]], *parts))

    def _rows(self, groups: int) -> int:
        return -(-self._streams // groups)

    def _choice(self, ring: Ring, gap: float) -> Choice:
        rounds = []
        for groups in self.groups:
            rows = self._rows(groups)
            around = price(self.tables(rows), ring.head, ring.way)
            rounds.append((max(groups * self.slowest(ring, rows), around), groups))
        token = price(self.tables(1), ring.head, ring.way)
        return Choice(ring, token, *min(rounds), 0.0 if gap < 10 * _EXACT else gap)

    def _shortest(
        self, groups: int, best: Choice, bounds: tuple[int, int | None, Sequence[int]], exact: bool
    ) -> tuple[Choice, float]:
        """Return the best ring for so many groups if it beats `best`, and a proven bound."""
        proved, low = 0.0, 0.0
        target = best.round_s * (1 - (_EXACT if exact else _NEAR))
        while not self._budget.spent:
            found = self._below(target, groups, bounds)
            if found.ring is not None:
                best = min(best, self._choice(found.ring, 0.0), key=lambda one: one.round_s)
            else:
                proved, low = max(proved, min(target, found.bound)), target
                if low >= best.round_s * (1 - 2 * _EXACT):
                    break
            if not low:
                target = best.round_s / 2
            elif best.round_s - low > _NEAR * best.round_s:
                target = (low + best.round_s) / 2
            elif exact:
                target = best.round_s * (1 - _EXACT)
            else:
                break
        return best, proved

    def _below(
        self, target: float, groups: int, bounds: tuple[int, int | None, Sequence[int]]
    ) -> Found:
        """Look for a ring whose round takes less than `target` with so many groups."""
        tables = self.tables(self._rows(groups)).within(target / groups)
        least, most, must = bounds
        return Search(
            tables, self._budget, least=least, most=most, must=must, below=target, any_ring=True
        ).run()

    def _settled(self, ring: Ring, tables: Tables, limit: float) -> Ring:
        """Return the ring with the same nodes, no dearer than `limit`, that is most even in bytes.

        Where nodes are equally fast every split takes the same time; this is how it is chosen.
        """
        if not ring.way:
            return ring
        held = self._prices.held
        sizes = held[None, :] - held[:, None]
        rounds, first = len(held) - 1, self._prices.first
        ends = held[first] + held[rounds] - held + self._prices.model.head_bytes
        order = [node for node, _, _ in ring.way]
        steps = np.unique(np.concatenate([sizes[sizes > 0], ends]))
        low, high = 0, len(steps) - 1
        while low < high:
            middle = (low + high) // 2
            most = steps[middle]
            capped = Tables(
                np.where(sizes <= most, tables.parts, np.inf), tables.hops,
                np.where(ends <= most, tables.heads, np.inf), tables.whole, first,
            )  # fmt: skip
            cost, way = refine.cut(capped, ring.head, order)
            if cost <= limit * (1 + _EXACT):
                ring, high = Ring(ring.head, way, cost), middle
            else:
                low = middle + 1
        return ring
