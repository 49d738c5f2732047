"""Good rings fast: the best parts for an order of nodes, and better orders by single changes.

A core. For large meshes, where the search (`search.py`) cannot look at everything: it needs a ring
that is nearly the best to know what to leave out. A change puts a node in, takes one out, or puts
one in another's place; each is priced exactly, for all nodes and all cuts at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.placement.prices import Floats, Tables
from agent.placement.sweep import Way


def cut(tables: Tables, head: int, order: Sequence[int]) -> tuple[float, Way]:
    """Return the least cost of a ring with the nodes in this order, and its way.

    The cost is infinite, and the way empty, where there is none.
    """
    costs = _start(tables)
    origins, before = [], head
    for node in order:
        came = (costs + tables.hops[before, node])[:, None] + tables.parts[node]
        origins.append(came.argmin(axis=0))
        costs, before = came.min(axis=0), node
    total = costs + tables.hops[before, head] + tables.heads[head]
    last = int(total.argmin())
    if not np.isfinite(total[last]):
        return np.inf, []
    cost, way = float(total[last]), []
    for node, origin in zip(reversed(order), reversed(origins), strict=True):
        first = int(origin[last])
        way.append((node, first, last))
        last = first
    return cost, way[::-1]


def build(tables: Tables, head: int, room: Floats, most: int | None) -> list[int]:
    """Return an order of nodes that together hold the model: the cheapest a round come first.

    Where these are too many, or cannot be filled, those with most room. `room[i]`: how many rounds
    node i can hold at most. Empty where there is no such order.
    """
    usable = np.isfinite(tables.heads[head])
    if not usable.any():
        return []
    missing = int(np.argmax(usable)) - tables.first
    rounds = tables.heads.shape[1] - 1
    single = tables.parts[:, np.arange(rounds), np.arange(1, rounds + 1)].min(axis=1)
    worth = single + tables.hops.min(axis=0) / np.maximum(room, 1)
    for ranking in (worth, -room):
        ranked = [int(node) for node in np.argsort(ranking) if node != head and room[node] > 0]
        ranked = ranked[:most]
        # Layers differ in size, so rooms may not be filled by parts: then a few nodes more are.
        enough = int(np.searchsorted(np.cumsum(room[ranked]), missing)) + 1
        for count in range(enough, len(ranked) + 1):
            order = _nearest(tables, head, ranked[:count])
            if np.isfinite(cut(tables, head, order)[0]):
                return order
    return []


def better(
    tables: Tables,
    head: int,
    order: list[int],
    changes: int,
    keep: frozenset[int] = frozenset(),
    counts: tuple[int, int] = (1, 10_000),
) -> tuple[list[int], int]:
    """Return an order after the best single changes, one after another, at most so many.

    Nodes of `keep` stay in it; `counts`: the fewest and the most nodes, the head apart. The second
    value says how often all nodes and cuts were priced at one place.
    """
    cost, tried = cut(tables, head, order)[0], 0
    onward: dict[tuple[int, ...], Floats] = {}
    for _ in range(changes):
        known = len(onward)
        best, changed = _best_change(tables, head, order, keep, counts, onward)
        tried += len(onward) - known
        if not best < cost * (1 - 1e-12):
            break
        cost, order = best, changed
    return order, tried


def _best_change(
    tables: Tables, head: int, order: list[int], keep: frozenset[int], counts: tuple[int, int],
    onward: dict[tuple[int, ...], Floats],
) -> tuple[float, list[int]]:  # fmt: skip
    """Return the best change; `onward`, by the nodes behind a place, is filled where it lacks.

    `onward[…][node, x]`: that node with rounds from x on, and all that is behind its place.
    """
    hops = tables.hops
    before, behind = _forward(tables, head, order), _backward(tables, head, order)
    for at, costs in enumerate(behind):
        if tuple(order[at:]) not in onward:
            onward[tuple(order[at:])] = (tables.parts + costs).min(axis=2)
    taken = np.zeros(len(hops), dtype=bool)
    taken[[head, *order]] = True
    found: list[tuple[float, list[int]]] = [(np.inf, order)]
    ring = [head, *order, head]
    for at in range(len(order) + 1):
        # `at` nodes come before; the change lies between ring[at] and what follows.
        for skipped in (0, 1):
            if skipped and (at == len(order) or order[at] in keep):
                continue
            length, rest = len(order) - skipped, order[at + skipped :]
            leave, enter = ring[at], ring[at + 1 + skipped]
            if skipped and counts[0] <= length:
                joined = (before[at] + behind[at + skipped]).min() + hops[leave, enter]
                found.append((float(joined), order[:at] + rest))
            if length + 1 > counts[1]:
                continue
            through = (before[at] + onward[tuple(rest)]).min(axis=1)
            through = through + hops[leave] + hops[:, enter]
            through[taken] = np.inf
            node = int(through.argmin())
            found.append((float(through[node]), [*order[:at], node, *rest]))
    return min(found)


def _start(tables: Tables) -> Floats:
    costs = np.full(tables.heads.shape[1], np.inf)
    costs[tables.first] = 0.0
    return costs


def _forward(tables: Tables, head: int, order: Sequence[int]) -> list[Floats]:
    """Return the least costs up to each round, after 0, 1, … nodes of the order."""
    costs, last = [_start(tables)], head
    for node in order:
        came = (costs[-1] + tables.hops[last, node])[:, None] + tables.parts[node]
        costs.append(came.min(axis=0))
        last = node
    return costs


def _backward(tables: Tables, head: int, order: Sequence[int]) -> list[Floats]:
    """Return the least costs from each round on, before 0, 1, … nodes; hops inside them only."""
    costs, following = [tables.heads[head]], head
    for node in reversed(order):
        onward = tables.parts[node] + (costs[-1] + tables.hops[node, following])[None]
        costs.append(onward.min(axis=1))
        following = node
    return costs[::-1]


def _nearest(tables: Tables, head: int, nodes: Sequence[int]) -> list[int]:
    """Return the nodes in the order in which each is the nearest to the one before."""
    left, order, last = list(nodes), [], head
    while left:
        last = left.pop(int(np.argmin([tables.hops[last, node] for node in left])))
        order.append(last)
    return order
