"""Random small problems, and the best rings for them by trying every one.

For test_exact.py and tests/bench/placement.py. The prices are computed here once more, from the
inputs alone and one part at a time, so that an error in the tables is found as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from agent.engine.pace import BATCHES
from agent.placement.inputs import (
    DECODE_BYTES_S,
    OVERHEAD,
    PREFILL_FLOP_S,
    Aims,
    Link,
    Links,
    Model,
    Node,
)


@dataclass(frozen=True)
class Case:
    """One random problem."""

    model: Model
    nodes: list[Node]
    links: Links
    aims: Aims


@dataclass(frozen=True)
class Priced:
    """One ring: the ids in order, what a token of one stream takes, a round of all streams."""

    nodes: tuple[str, ...]
    token_s: float
    round_s: float


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def random_case(rng: np.random.Generator, most_nodes: int = 5) -> Case:
    """Draw a problem of up to five nodes and nine layers, of every kind of wish."""
    count, layers = int(rng.integers(1, most_nodes + 1)), int(rng.integers(3, 10))
    alike = rng.random() < 0.4
    sizes = [200_000_000] * layers if alike else rng.integers(5e7, 4e8, layers).tolist()
    total, barred = sum(sizes), int(rng.integers(1, 9))
    model = Model(
        tuple(sizes), int(total * rng.uniform(0.0, 0.2)), int(rng.choice([1, 1, 1, 2, 3])),
        kv_bytes=int(rng.choice([0, 4096])), output_bytes=int(total * 0.03),
        attended=int(rng.choice([0, 8192])),
        row_bytes=int(rng.choice([2048, 16384])), buffer_bytes=int(rng.choice([0, 10_000_000])),
        **({"allows": lambda start, stop: stop - start != barred} if rng.random() < 0.2 else {}),
    )  # fmt: skip
    needed = rng.uniform(0.6, 2.5)
    nodes = [_random_node(rng, number, total / needed, layers) for number in range(count)]
    links = {
        (one.node, other.node): Link(
            log_uniform(rng, 2e-4, 0.08), float(rng.choice([0.0, 0.002])),
            float(rng.choice([0.0, 0.0, 0.01])), log_uniform(rng, 1.25e6, 1.25e9),
        )
        for one in nodes for other in nodes if one is not other and rng.random() < 0.8
    }  # fmt: skip
    least = int(rng.integers(1, 4)) if rng.random() < 0.2 else 1
    one = nodes[int(rng.integers(count))].node
    aims = Aims(
        objective=str(rng.choice(["latency", "throughput", "auto"])),  # type: ignore[arg-type] # one of them
        context=4096, streams=int(rng.choice([1, 1, 2, 3, 4, 6])), least=least,
        most=least + int(rng.integers(3)) if rng.random() < 0.2 else None,
        head=one if rng.random() < 0.2 else "",
        head_tags=frozenset({"a"} if rng.random() < 0.1 else ()),
        never=frozenset({"b"} if rng.random() < 0.2 else ()),
        through=frozenset({one} if rng.random() < 0.1 else ()),
        horizon_tokens=10_000.0 if rng.random() < 0.2 else None,
    )  # fmt: skip
    return Case(model, nodes, Links(links), aims)


def _random_node(rng: np.random.Generator, number: int, usual: float, layers: int) -> Node:
    measured = rng.random() < 0.9
    return Node(
        f"n{number}", f"node{number}", int(1.25 * usual * rng.uniform(0.4, 1.7)),
        frozenset(tag for tag in "ab" if rng.random() < 0.3),
        log_uniform(rng, 5e9, 5e11) if measured else None,
        log_uniform(rng, 5e10, 5e12) if measured else None,
        row_s=log_uniform(rng, 1e-4, 1e-2),
        head_allowed=bool(rng.random() < 0.8),
        held=frozenset(layer for layer in range(layers) if rng.random() < 0.3),
        batches=(
            tuple(rng.uniform(1.0, 6.0, len(BATCHES)).tolist())
            if measured and rng.random() < 0.5
            else ()
        ),
        attended_s=log_uniform(rng, 1e9, 1e12) if measured and rng.random() < 0.5 else None,
    )  # fmt: skip


def rings(case: Case) -> list[Priced]:
    """Return every ring that is possible."""
    return list(_Enumeration(case).all())


class _Enumeration:
    def __init__(self, case: Case) -> None:
        self._case = case
        model, aims = case.model, case.aims
        self._nodes = [
            node for node in case.nodes
            if not node.tags & aims.never and (not aims.only or node.tags & aims.only)
        ]  # fmt: skip
        layers = len(model.layer_bytes)
        self._edges = [*range(0, layers, model.period), layers]
        self._least, most = aims.counts
        self._most = min(most or len(self._nodes), len(self._nodes))
        self._groups = range(1, aims.streams + 1)
        self._rows = [1, *(-(-aims.streams // groups) for groups in self._groups)]

    def all(self) -> Iterator[Priced]:
        aims, layers = self._case.aims, len(self._case.model.layer_bytes)
        for head in self._nodes:
            tagged = not aims.head_tags or head.tags & aims.head_tags
            if not head.head_allowed or aims.head not in ("", head.node) or not tagged:
                continue
            if self._least <= 1 and aims.through <= {head.node}:
                whole = [(0, layers)]
                if self._fits(head, whole, head=True):
                    yield self._priced([(head, whole)])
            first = self._first()
            if first is not None:
                yield from self._further([(head, [(0, first)])], first)

    def _first(self) -> int | None:
        """Return the shortest first part with which a ring of an allowed size can be cut."""
        for first in self._edges[1:-1]:
            for size in range(max(2, self._least), self._most + 1):
                if self._case.model.allows(0, first) and self._cuttable(first, size):
                    return first
        return None

    def _cuttable(self, start: int, parts: int) -> bool:
        ends = [self._edges[-1]] if parts == 1 else self._edges
        return any(
            start < end and self._case.model.allows(start, end)
            and (parts == 1 or self._cuttable(end, parts - 1))
            for end in ends
        )  # fmt: skip

    def _further(
        self, ring: list[tuple[Node, list[tuple[int, int]]]], reached: int
    ) -> Iterator[Priced]:
        """Yield the rings that begin so: the head's last part, or one more node."""
        layers, (head, (first,)) = self._edges[-1], ring[0]
        names = {node.node for node, _ in ring}
        if len(ring) > 1 and len(ring) >= self._least and self._case.aims.through <= names:
            last = (reached, layers)
            if self._case.model.allows(*last) and self._fits(head, [first, last], head=True):
                yield self._priced([(head, [first, last]), *ring[1:]])
        if len(ring) >= self._most:
            return
        for node in self._nodes:
            if node.node in names:
                continue
            for end in self._edges:
                if not reached < end < layers or not self._case.model.allows(reached, end):
                    continue
                if self._fits(node, [(reached, end)], head=False):
                    yield from self._further([*ring, (node, [(reached, end)])], end)

    def _fits(self, node: Node, parts: list[tuple[int, int]], *, head: bool) -> bool:
        model = self._case.model
        layers = [layer for part in parts for layer in range(*part)]
        held = sum(model.layer_bytes[layer] for layer in layers)
        held += len(layers) * model.kv_bytes * self._case.aims.context
        held += model.head_bytes if head else 0
        return held * OVERHEAD + model.buffer_bytes <= node.free_bytes

    def _priced(self, ring: list[tuple[Node, list[tuple[int, int]]]]) -> Priced:
        around, slowest = [], []
        for rows in self._rows:
            times = [
                self._busy(node, parts, rows, head=at == 0) for at, (node, parts) in enumerate(ring)
            ]
            order = [node for node, _ in ring]
            hops = [
                self._case.links.between(one.node, other.node).hop_s(
                    rows * self._case.model.row_bytes
                )
                for one, other in zip(order, [*order[1:], order[0]], strict=True)
                if len(ring) > 1
            ]
            around.append(sum(times) + sum(hops))
            slowest.append(max(times))
        turns = zip(self._groups, slowest[1:], around[1:], strict=True)
        return Priced(
            tuple(node.node for node, _ in ring), around[0],
            min(max(groups * slow, full) for groups, slow, full in turns),
        )  # fmt: skip

    def _busy(self, node: Node, parts: list[tuple[int, int]], rows: int, *, head: bool) -> float:
        model, aims = self._case.model, self._case.aims
        layers = [layer for part in parts for layer in range(*part)]
        weights = sum(model.layer_bytes[layer] for layer in layers)
        output = model.output_bytes if head else 0
        behind = aims.context / (2 * aims.streams)
        decode = node.decode_bytes_s or DECODE_BYTES_S
        prefill = node.prefill_flop_s or PREFILL_FLOP_S
        if node.batches:
            sizes, times = (1, *BATCHES), (1.0, *node.batches)
            above = next((at for at, size in enumerate(sizes) if size >= rows), len(sizes) - 1)
            reads, beyond = times[above], max(0, rows - sizes[above])
            if sizes[above] > rows:
                part = (rows - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
                reads = times[above - 1] + part * (times[above] - times[above - 1])
        else:
            reads, beyond = 1.0, rows - 1
        whole = weights + output
        attending = model.attended / node.attended_s if node.attended_s else 0.0
        cache_s = rows * behind * len(layers) * max(model.kv_bytes / decode, attending)
        time = reads * whole / decode + cache_s + 2 * beyond * whole / prefill
        if aims.horizon_tokens is not None:
            lacks = sum(model.layer_bytes[layer] for layer in layers if layer not in node.held)
            time += rows * lacks / self._fetch_bytes_s(node) / aims.horizon_tokens
        return time + len(parts) * node.stage_s + (rows * node.row_s if head else 0.0)

    def _fetch_bytes_s(self, node: Node) -> float:
        everything = set(range(len(self._case.model.layer_bytes)))
        sources = [one for one in self._nodes if one.held >= everything] or self._nodes
        rates = [self._case.links.between(one.node, node.node).bytes_s
                 for one in sources if one is not node]  # fmt: skip
        return max(rates, default=math.inf)


def verdict(case: Case, token_s: float, round_s: float) -> str:
    """Say what is wrong with an answer for a case with rings; empty if it is the best."""

    def same(one: float, other: float) -> bool:
        return abs(one - other) <= 1e-8 * other

    every = rings(case)
    least = min(ring.token_s for ring in every)
    shortest = min(ring.round_s for ring in every)
    if case.aims.objective == "latency" or case.aims.streams == 1:
        return "" if same(token_s, least) else f"a token takes {token_s}, it could {least}"
    if case.aims.objective == "throughput":
        return "" if same(round_s, shortest) else f"a round takes {round_s}, it could {shortest}"
    usual = [ring for ring in every if same(ring.token_s, least)]
    better = [
        ring for ring in every if same(ring.round_s, shortest)
        and ring.token_s <= least * 1.1
        and all(ring.round_s * 1.2 <= other.round_s for other in usual)
    ]  # fmt: skip
    if same(token_s, least):
        needless = not better or any(same(one.token_s, least) for one in better)
        others = any(same(ring.round_s, shortest) and ring not in better for ring in every)
        return "" if needless or others else "a ring of more throughput was passed over"
    fits = any(same(round_s, one.round_s) and same(token_s, one.token_s) for one in better)
    return "" if fits else "it has neither the least latency nor enough throughput"
