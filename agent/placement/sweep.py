"""The cheapest way through a ring, by dynamic programming over nodes and rounds.

A core. A way leaves the head, passes nodes that take one part each, and comes back to the head.
Ways in which a node comes again are allowed unless it is one of `once`: remembering who was there
is what costs time, so the caller (`search.py`) names only those where it matters. What a sweep
finds is thus never dearer than the cheapest ring. `extra` is added for each visit of a node. A way
is a list of (node, first round, last round) without the head's parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.placement.prices import Floats, Tables

Way = list[tuple[int, int, int]]


@dataclass(frozen=True)
class Counts:
    """How many nodes a way may pass, the head apart: at least and at most (None: any number)."""

    least: int = 1
    most: int | None = None

    @property
    def levels(self) -> int:
        """How far has to be counted; from there on all numbers are alike if there is no `most`."""
        return self.most if self.most is not None else (self.least if self.least > 1 else 0)


class Sweep:
    """One run for some heads at once; `cost(number)` and `way(number)` are of one head's best.

    `once`: nodes that come at most once. Those of them in `must` have to come, or be the head.
    """

    def __init__(
        self, tables: Tables, heads: Sequence[int], counts: Counts, *,
        once: Sequence[int] = (), must: Sequence[int] = (), extra: Floats | None = None,
    ) -> None:  # fmt: skip
        self._tables, self._heads, self._counts, self._once = tables, heads, counts, list(once)
        nodes, rounds = tables.heads.shape[0], tables.heads.shape[1] - 1
        self._levels = counts.levels
        shape = (len(heads), self._levels + 1, 1 << len(self._once), nodes, rounds + 1)
        self._ended = np.full(shape, np.inf)  # the cost of having had all up to a round, last on …
        self._entered = np.full(shape, np.inf)  # … and of having come to a node with rows of it
        self._parts = tables.parts
        if extra is not None:
            self._parts = self._parts + extra[:, None, None]
        for edge in range(tables.first, rounds):
            self._step(edge)
        self._finish(must)

    @property
    def work(self) -> int:
        """How much was computed, in steps of about a nanosecond."""
        return int(self._ended.size * (self._ended.shape[3] + self._ended.shape[4]))

    def cost(self, number: int) -> float:
        """Return the cost of the best way of the head with this number."""
        return float(self._costs[number])

    def way(self, number: int) -> Way:
        """Return that way; only where its cost is finite."""
        level, seen, node, last = self._ends[number]
        way: Way = []
        while True:
            came = self._entered[number, level, seen, node] + self._parts[node, :, last]
            first = int(np.argmin(came))
            way.append((node, first, last))
            if first == self._tables.first:
                return way[::-1]
            before = self._before(level)
            seen &= ~self._bit(node)
            costs = self._ended[number, before, seen, :, first] + self._tables.hops[:, node]
            level, node = divmod(int(np.argmin(costs)), costs.shape[1])
            level, last = before[level], first

    def _bit(self, node: int) -> int:
        return 1 << self._once.index(node) if node in self._once else 0

    def _before(self, level: int) -> list[int]:
        """Return the levels from which a further node leads to this one."""
        if self._counts.most is None and level == self._levels:
            return [level - 1, level] if level else [0]
        return [level - 1]

    def _step(self, edge: int) -> None:
        """Let rows of this round come to every node, and every node take parts from there on."""
        hops, heads = self._tables.hops, np.asarray(self._heads)
        if edge == self._tables.first:
            came = np.full(self._ended.shape[:4], np.inf)
            came[:, 0, 0] = hops[heads]
        else:
            ended = self._ended[..., edge]
            if not np.isfinite(ended).any():
                return
            came = (ended[..., :, None] + hops).min(axis=-2)
        came[np.arange(len(heads)), :, :, heads] = np.inf
        if self._levels:
            fresh = np.full_like(came, np.inf)
            fresh[:, 1:] = came[:, :-1]
            if self._counts.most is None:
                fresh[:, -1] = np.minimum(fresh[:, -1], came[:, -1])
            came = fresh
        for place, node in enumerate(self._once):
            seen = np.arange(came.shape[2])
            with_it = seen[seen >> place & 1 == 1]
            came[:, :, with_it, node] = came[:, :, with_it ^ (1 << place), node]
            came[:, :, with_it ^ (1 << place), node] = np.inf
        self._entered[..., edge] = came
        further = self._ended[..., edge + 1 :]
        np.minimum(further, came[..., None] + self._parts[:, edge, edge + 1 :], out=further)

    def _finish(self, must: Sequence[int]) -> None:
        hops, ends = self._tables.hops, self._tables.heads
        least = min(self._counts.least, self._levels)
        sets = np.arange(self._ended.shape[2])
        self._costs, self._ends = np.full(len(self._heads), np.inf), []
        for number, head in enumerate(self._heads):
            needed = sum(self._bit(node) for node in must if node != head)
            seen = np.flatnonzero(sets & needed == needed)
            ended = self._ended[number, least:][:, seen]
            total = ended + hops[:, head][:, None] + ends[head]
            best = int(np.argmin(total))
            level, chosen, node, last = (int(n) for n in np.unravel_index(best, total.shape))
            self._costs[number] = total.flat[best]
            self._ends.append((level + least, int(seen[chosen]), node, last))
