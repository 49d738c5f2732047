"""What a ring is good for, and the best one for each objective.

A core. For one stream a token takes the sum of all parts and hops, the one back to the head
included (`latency`). For `streams` answers at once their rows go round in `groups` frames of
`streams / groups` rows, rounded up; a round of all of them takes

    max(groups · slowest node, the way round of one frame)

with as many groups as make it shortest: tokens/s are streams by that (`throughput`). `auto` is the
ring of the least latency, unless the ring of the highest throughput makes at least 20 % more
tokens/s, and one stream's token takes at most 10 % longer in it. For one stream all three are the
same.

`throughput` is found by asking whether a ring exists whose round is shorter than some time, which
is a search for the cheapest ring among parts that are short enough, and halving the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from agent.placement import refine
from agent.placement.inputs import Objective
from agent.placement.prices import Prices, Tables
from agent.placement.search import (
    BUDGET,
    Budget,
    Ring,
    Search,
    budget_for,
    head_looks,
    price,
)

MORE_THROUGHPUT = 1.2
MORE_LATENCY = 1.1
# A round that is shorter by less than this is the same.
_EXACT = 1e-9
# Interval at which halving ends; from there each ring found shortens it.
_NEAR = 1e-3
_NEAR_OF_MANY = 1e-2
# How many heads are looked at first, for what share of the work.
_HEADS_FIRST = 2
_HEADS_SHARE = 0.6
# What the search for the least latency may spend of the budget, by objective.
_LATENCY_SHARE: dict[Objective, float] = {"latency": 1.0, "throughput": 0.2, "auto": 0.5}


@dataclass(frozen=True)
class _Wanted:
    """How many nodes, which of them for certain, and whether a thousandth matters."""

    least: int
    most: int | None
    must: Sequence[int]
    exact: bool
    heads: Sequence[int] = ()


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
    """Finds rings for one problem. `most` and `least` count nodes, the head included.

    `seen` has the best ring for each objective that was looked for last. `share`: of the usual
    budget.
    """

    def __init__(self, prices: Prices, share: float = 1.0) -> None:
        self._prices, self._share = prices, share
        self._tables: dict[int, Tables] = {}
        self._streams = prices.aims.streams
        self.seen: dict[Objective, Choice] = {}

    @cached_property
    def groups(self) -> list[int]:
        """How many frames the streams may be split over: the fewest for each number of rows."""
        rows = {self._rows(groups) for groups in range(1, self._streams + 1)}
        return sorted({-(-self._streams // each) for each in rows})

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
        share = _LATENCY_SHARE[objective] if self._streams > 1 else 1.0
        fastest = self.latency(least, most, must, share)
        if fastest is None or objective == "latency" or self._streams == 1:
            return fastest
        busiest = self.throughput(fastest, least, most, must, exact, 1 - share)
        if objective == "throughput":
            return busiest
        more = busiest.round_s * MORE_THROUGHPUT <= fastest.round_s
        return busiest if more and busiest.token_s <= fastest.token_s * MORE_LATENCY else fastest

    def latency(
        self, least: int = 1, most: int | None = None, must: Sequence[int] = (),
        share: float = 1.0,
    ) -> Choice | None:  # fmt: skip
        """Return the ring in which a token of one stream takes the shortest time."""
        tables = self.tables(1)
        found = Search(tables, self._budget(share), least=least, most=most, must=must).run()
        if found.ring is None:
            return None
        ring = self._settled(found.ring, tables, found.ring.cost)
        self.seen["latency"] = self._choice(ring, found.ring.cost / found.bound - 1)
        return self.seen["latency"]

    def throughput(
        self, start: Choice, least: int = 1, most: int | None = None, must: Sequence[int] = (),
        exact: bool = True, share: float = 1.0,
    ) -> Choice:  # fmt: skip
        """Return the ring in which a round of all streams is shortest; any one to start from."""
        budget, wanted = self._budget(share), _Wanted(least, most, must, exact)
        # A frame of several rows takes no less than one of one row.
        sure = start.token_s / (1 + start.gap)
        bounds = {groups: max(sure, self._bound(groups)) for groups in self.groups}
        best, order = start, sorted(self.groups, key=bounds.__getitem__)
        looks = head_looks(self.tables(1))
        if budget.left is not None and np.isfinite(looks).sum() > _HEADS_FIRST:
            # Among many nodes, a few heads first: what is found there is worth more than a bound.
            heads = (start.ring.head, *(int(head) for head in looks.argsort()[:_HEADS_FIRST]))
            some, part = replace(wanted, heads=heads), self._budget(share * _HEADS_SHARE)
            for groups in order:
                best, _ = self._shortest(groups, best, bounds[groups], some, part)
            budget.spend(share * _HEADS_SHARE * BUDGET * self._share - (part.left or 0.0))
        for groups in order:
            if budget.left is not None and bounds[groups] < best.round_s:
                # One sweep; what follows may end without an answer.
                swept = Search(self.tables(self._rows(groups)), Budget(0), least=least, most=most,
                               must=must).run()  # fmt: skip
                bounds[groups] = max(bounds[groups], swept.bound)
            best, bounds[groups] = self._shortest(groups, best, bounds[groups], wanted, budget)
        # Of the rings whose round is as short, that in which a frame is back first.
        limit = best.round_s * (1 + _EXACT)
        tables = self.tables(self._rows(best.groups)).within(limit / best.groups)
        again = None
        if budget.left is None:
            again = Search(tables, budget, least=least, most=most, must=must).run().ring
        ring = self._settled(again or best.ring, tables, again.cost if again else limit)
        settled = self._choice(ring, 0.0)
        gap = settled.round_s / min(settled.round_s, *bounds.values()) - 1
        self.seen["throughput"] = self._choice(ring, gap)
        return self.seen["throughput"]

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

    def _budget(self, share: float) -> Budget:
        return budget_for(len(self._prices.nodes), share * self._share)

    def _bound(self, groups: int) -> float:
        """Return a time that no round with so many groups is shorter than.

        However the nodes are put in order: together they must hold all rounds, each no more than
        it computes in that time.
        """
        tables = self.tables(self._rows(groups))
        nodes, edges = tables.heads.shape
        # The shortest time of each node for so many rounds, as a part and as the head.
        parts = np.full((nodes, edges), np.inf)
        for length in range(1, edges):
            parts[:, length] = tables.parts.diagonal(length, 1, 2).min(axis=1)
        own = tables.heads[:, ::-1]  # by the length of the last part
        steps = np.unique(np.concatenate([parts[np.isfinite(parts)], own[np.isfinite(own)]]))
        low, high = 0, len(steps) - 1
        while low < high:
            middle = (low + high) // 2
            room = (edges - 1 - (parts[:, ::-1] <= steps[middle]).argmax(axis=1)) * (
                parts <= steps[middle]
            ).any(axis=1)
            heads = np.where(
                (own <= steps[middle]).any(axis=1),
                edges - 1 - (own[:, ::-1] <= steps[middle]).argmax(axis=1) + tables.first, -np.inf,
            )  # fmt: skip
            enough = (heads - room).max() + room.sum() >= edges - 1
            low, high = (low, middle) if enough else (middle + 1, high)
        ring = groups * float(steps[low]) if len(steps) else np.inf
        return float(min(ring, tables.whole.min()))

    def _shortest(
        self, groups: int, best: Choice, bound: float, wanted: _Wanted, budget: Budget
    ) -> tuple[Choice, float]:
        """Return the best ring for so many groups if it beats `best`, and the bound, raised."""
        exact = wanted.exact and budget.left is None
        near = _NEAR if budget.left is None else _NEAR_OF_MANY
        low, target = bound, best.round_s * (1 - (_EXACT if exact else near))
        while not budget.spent and low < best.round_s * (1 - (2 * _EXACT if exact else near)):
            tables = self.tables(self._rows(groups)).within(target / groups)
            found = Search(
                tables, budget, least=wanted.least, most=wanted.most, must=wanted.must,
                below=target, any_ring=True, heads=wanted.heads,
            ).run()  # fmt: skip
            if found.ring is not None:
                best = min(best, self._choice(found.ring, 0.0), key=lambda one: one.round_s)
            else:
                bound, low = max(bound, min(target, found.bound)), target
            last = best.round_s - low <= near * best.round_s
            target = best.round_s * (1 - _EXACT) if last else (low + best.round_s) / 2
        return best, bound

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
