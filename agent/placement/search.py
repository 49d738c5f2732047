"""The cheapest ring: exact where there are few nodes, with a proven bound where there are many.

A core. A sweep (`sweep.py`) lets nodes come twice, so its cost is a lower bound. Where its way has
a node twice, that node is remembered and the sweep runs again (decremental state space relaxation:
Righini and Salani, Networks 51, 2008), until the way is a ring. Up to `FEW` nodes this always ends.
With more it ends mostly; a budget of work (not of time: the same problem has the same answer on
every machine) stops it otherwise. There nodes that come twice are first made dearer, step by step
(a Lagrangian relaxation by subgradients), which lifts the bound without remembering anything, and
`refine.py` supplies rings that are nearly the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from agent.placement import refine
from agent.placement.prices import Floats, Tables
from agent.placement.sweep import Counts, Sweep, Way

# Nodes up to which the answer is exact whatever it costs.
FEW = 12
# Up to so many all are remembered at once, for all heads: one sweep is the answer.
_TINY = 6
# What a search among more nodes may spend, in steps of about a nanosecond.
BUDGET = 500_000_000
# Costs nearer than this are the same: sums of the same numbers in another order.
SAME = 1e-11
# A sweep costs so many steps beside those that it counts.
_SWEEP_STEPS = 500_000
# Sweeps before a node is remembered: the first time, and each time after it.
_ASCENTS = (30, 10)
# Sweeps without a better bound after which prices change half as much.
_PATIENCE = 3
# Each node more doubles what a sweep takes.
_REMEMBERED_MAX = 7
_CHANGES = 24
_HEADS_REFINED = 3
# What changes of one ring may take of what is left.
_REFINED_SHARE = 10
# How often prices found for one head are tried on all.
_BATCHES = 4


@dataclass
class Budget:
    """What is left to spend; None: as much as it takes."""

    left: float | None

    def spend(self, work: float) -> None:
        """Take so much off."""
        if self.left is not None:
            self.left -= work

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self.left is not None and self.left <= 0


def budget_for(nodes: int, share: float = 1.0) -> Budget:
    """Return what a search among so many nodes may spend, or a share of it."""
    return Budget(None if nodes <= FEW else share * BUDGET)


@dataclass(frozen=True)
class Ring:
    """A head and the way from it; no way: a ring of one."""

    head: int
    way: Way
    cost: float

    @property
    def nodes(self) -> list[int]:
        """The nodes in order, the head first."""
        return [self.head, *(node for node, _, _ in self.way)]


@dataclass(frozen=True)
class Found:
    """The best ring found, and what no ring can be cheaper than; None: none below the limit."""

    ring: Ring | None
    bound: float


class _Head:
    """What is remembered for one head: nodes that come at most once, and how often it was swept."""

    def __init__(self, once: list[int]) -> None:
        self.once, self.level = once, 0


class Search:
    """One search over tables; `least` and `most` count nodes, the head included.

    `heads`: look at no others (empty: at all); the bound then holds for these alone.
    """

    def __init__(
        self, tables: Tables, budget: Budget, *, least: int = 1, most: int | None = None,
        must: Sequence[int] = (), below: float = np.inf, any_ring: bool = False,
        heads: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._tables, self._budget = tables, budget
        self._nodes = tables.heads.shape[0]
        self._least = least
        self._most = most if most is not None and most < self._nodes else None
        self._must = list(must)
        self._cost = below
        self._ring: Ring | None = None
        self._any_ring = any_ring
        self._heads = frozenset(heads or range(self._nodes))
        self._few = self._nodes <= FEW
        self._batches = 0 if self._few else _BATCHES
        self._extra = np.zeros(self._nodes)

    def run(self) -> Found:
        """Return the cheapest ring that costs less than `below`; with `any_ring` the first."""
        self._alone()
        if self._most == 1 or self._done:
            return Found(self._ring, self._cost)
        heads = [int(h) for h in np.flatnonzero(np.isfinite(self._tables.heads).any(axis=1))]
        if self._nodes <= _TINY:
            return self._at_once(heads)
        heads = [head for head in heads if head in self._heads and self._holds(head)]
        if not self._few:
            self._guess(heads)
        bounds = dict.fromkeys(heads, -np.inf)
        if heads and not self._done:
            self._bound(heads, bounds)
        open_heads = {head: _Head([n for n in self._must if n != head]) for head in heads}
        while bounds and not self._done and not self._budget.spent:
            # Whichever head could still be the cheapest comes next: the bound is its bound.
            head = min(bounds, key=bounds.__getitem__)
            state = open_heads[head]
            if not self._cheaper(bounds[head]) or state.level > _REMEMBERED_MAX + self._few * FEW:
                break
            bounds[head] = self._ascend(head, state, bounds[head])
            if state.level == 1 and self._batches and self._extra.any():
                self._batches -= 1
                open_ones = [h for h in bounds if self._cheaper(bounds[h])]
                if open_ones:
                    self._bound(open_ones, bounds)
        return Found(self._ring, min([self._cost, *bounds.values()]))

    def _at_once(self, heads: Sequence[int]) -> Found:
        """Search all rings of a few nodes."""
        if heads:
            swept = self._sweep(heads, range(self._nodes))
            best = min(range(len(heads)), key=swept.cost)
            if np.isfinite(swept.cost(best)):
                way = swept.way(best)
                self._take(heads[best], way, price(self._tables, heads[best], way))
        return Found(self._ring, self._cost)

    @property
    def _done(self) -> bool:
        return self._any_ring and self._ring is not None

    def _cheaper(self, cost: float) -> bool:
        return cost < self._cost * (1 - SAME)

    def _take(self, head: int, way: Way, cost: float) -> None:
        """Keep a ring if it is the best so far."""
        if self._cheaper(cost):
            self._cost, self._ring = cost, Ring(head, way, cost)

    def _alone(self) -> None:
        if self._least > 1:
            return
        for head in range(self._nodes):
            if set(self._must) <= {head}:
                self._take(head, [], float(self._tables.whole[head]))

    def _sweep(self, heads: Sequence[int], once: Sequence[int] = (), counted: bool = True) -> Sweep:
        most = None if self._most is None else self._most - 1
        counts = Counts(max(1, self._least - 1), most) if counted else Counts()
        must = [node for node in self._must if node in once]
        extra = self._extra.copy()
        extra[list(once)] = 0.0  # they cannot come twice, so nothing has to keep them from it
        done = Sweep(
            self._tables, heads, counts, once=once, must=must,
            extra=extra if extra.any() else None,
        )  # fmt: skip
        self._budget.spend(done.work + _SWEEP_STEPS)
        return done

    def _lifted(self, head: int, once: Sequence[int] = ()) -> float:
        """Return what extra costs add to a ring of this head at most: they come off its bound."""
        return float(self._extra.sum() - self._extra[list({head, *once})].sum())

    def _bound(self, heads: Sequence[int], bounds: dict[int, float]) -> None:
        """Raise the bounds of some heads by one sweep for all of them."""
        swept = self._sweep(heads, counted=False)
        for number, head in enumerate(heads):
            bounds[head] = max(bounds[head], swept.cost(number) - self._lifted(head))

    def _holds(self, head: int) -> bool:
        """Say whether the nodes together hold the model behind this head, by their rooms alone."""
        ends = np.flatnonzero(np.isfinite(self._tables.heads[head]))
        room = np.delete(self._room, head)
        if self._most is not None:
            room = np.sort(room)[::-1][: self._most - 1]
        return bool(len(ends)) and ends[0] - self._tables.first <= room.sum()

    def _guess(self, heads: Sequence[int]) -> None:
        """Find good rings of some heads that look good, so that much can be left out."""
        looks = head_looks(self._tables)
        most = None if self._most is None else self._most - 1
        for number, head in enumerate(sorted(heads, key=looks.__getitem__)):
            if number >= _HEADS_REFINED and self._ring is not None:
                break
            order = refine.build(self._tables, head, self._room, most)
            self._refine(head, order, _CHANGES)

    def _ascend(self, head: int, state: _Head, bound: float) -> float:
        """Sweep, make nodes that come twice dearer, sweep again; keep rings that come up.

        Returns the best bound, and has `state` remember the node that came too often.
        """
        often, step, bad = np.zeros(self._nodes), 1.0, 0
        ascents = 1 if self._few else _ASCENTS[bool(self._extra.any())]
        for ascent in range(ascents):
            swept = self._sweep([head], state.once)
            cost = swept.cost(0)
            if not np.isfinite(cost):
                return np.inf
            lifted = cost - self._lifted(head, state.once)
            bad = 0 if lifted > bound * (1 + 1e-4) else bad + 1
            bound = max(bound, lifted)
            way = swept.way(0)
            visits = np.bincount([node for node, _, _ in way], minlength=self._nodes)
            order = list(dict.fromkeys(node for node, _, _ in way))
            if len(order) == len(way):
                self._take(head, way, price(self._tables, head, way))
            elif not self._few:
                self._refine(head, order, _CHANGES // 8 if ascent % 5 == 4 else 0)
            often += np.maximum(visits - 1.0, 0.0)
            if not self._cheaper(bound) or self._done or self._budget.spent:
                return bound
            if bad >= _PATIENCE:
                step, bad = step / 2, 0
            limit = self._cost if np.isfinite(self._cost) else 1.05 * cost
            slope = np.where((visits > 1) | (self._extra > 0), visits - 1.0, 0.0)
            slope[[head, *state.once]] = 0.0
            length = step * max(limit - lifted, 0.0) / max(float((slope**2).sum()), 1.0)
            if ascents > 1:
                self._extra = np.maximum(self._extra + length * slope, 0.0)
        # Where nothing comes twice, prices of nodes that do not come keep the bound low.
        often = often if often.any() else self._extra.copy()
        often[[head, *state.once]] = -1.0
        state.level += 1
        state.once += [
            int(n) for n in (np.flatnonzero(often > 0) if self._few else [often.argmax()])
        ]
        return bound

    def _refine(self, head: int, order: list[int], changes: int) -> None:
        """Keep the best ring with the nodes in this order, or after some changes of it."""
        order = [*order, *(n for n in self._must if n not in (head, *order))]
        most = self._nodes if self._most is None else self._most - 1
        least = max(1, self._least - 1)
        if not order or len(order) > most:
            return
        work = (len(order) + 1) * self._tables.parts.size
        if self._budget.left is not None:
            changes = min(changes, int(self._budget.left / _REFINED_SHARE / work))
        if changes > 0:
            keep = frozenset(self._must)
            order, tried = refine.better(self._tables, head, order, changes, keep, (least, most))
            self._budget.spend(tried * self._tables.parts.size)
        if len(order) >= least:
            cost, way = refine.cut(self._tables, head, order)
            self._take(head, way, cost)

    @cached_property
    def _room(self) -> Floats:
        """How many rounds each node holds at most in one part."""
        finite = np.isfinite(self._tables.parts)
        edges = np.arange(finite.shape[1])
        last = finite.shape[2] - 1 - finite[:, :, ::-1].argmax(axis=2)
        lengths = np.where(finite.any(axis=2), last - edges, 0).max(axis=1)
        return np.asarray(lengths, dtype=np.float64)


def head_looks(tables: Tables) -> Floats:
    """Return how dear each node is as head at least, to see which to try first."""
    return np.asarray(tables.heads.min(axis=1) + tables.hops.min(axis=0) + tables.hops.min(axis=1))


def price(tables: Tables, head: int, way: Way) -> float:
    """Return what a ring costs: its parts, its hops, and the head."""
    if not way:
        return float(tables.whole[head])
    cost, last = float(tables.heads[head, way[-1][2]]), head
    for node, first, stop in way:
        cost += float(tables.hops[last, node] + tables.parts[node, first, stop])
        last = node
    return cost + float(tables.hops[last, head])
