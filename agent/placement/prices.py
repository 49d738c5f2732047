"""What each part of a model costs on each node, as tables that the search reads.

A core. A ring's head has the rounds [0, a) and [b, R), every other node one part between; `a` is
the shortest first part that the model allows, for where the head's layers lie, before or behind,
changes neither time nor memory where layers are alike, and rows reach the next node sooner. Tables
count in rounds of the model's period. The time of a part, for a frame of `rows` rows, is

    weights / decode + KV + (rows - 1) · flops / prefill + stage_s

or, where it was measured what batches of a few rows take, with that in place of rows · weights: on
CPUs a few rows are computed slower than many, and on some two take four times as long as one;

    batch(min(rows, 16)) · weights / decode + KV + max(rows - 16, 0) · flops / prefill + stage_s

where KV is what reading the cache takes, or attending to it where that is slower: on CPUs a row
that decodes computes for each token behind it longer than that takes to read;

and where fetching counts, for each row, the seconds it takes to fetch what the node lacks, shared
out over the horizon. The head computes twice a frame, reads the output matrix, and takes `row_s`
for each row that gets an output. Used by `objectives.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agent.engine.pace import BATCHES
from agent.placement.inputs import (
    DECODE_BYTES_S,
    OVERHEAD,
    PREFILL_FLOP_S,
    Aims,
    Links,
    Model,
    Node,
)

# Bytes a second over a link on which nothing was seen to pass, where weights would have to.
_STALLED = 1.0

Floats = NDArray[np.float64]
Truths = NDArray[np.bool_]


@dataclass(frozen=True)
class Frame:
    """What is computed at once: rows, tokens of KV cache read for them, rows that get an output.

    `attended`: tokens that rows attend to, each row for itself; the rows of a prompt do together.
    """

    rows: int
    read: float
    outputs: int
    attended: float = 0.0


@dataclass(frozen=True)
class Tables:
    """Costs (seconds) for one frame; infinite where something is not possible.

    `parts[i, x, y]`: node i with rounds [x, y). `hops[i, j]`: a frame from i to j. `heads[i, b]`:
    node i as head, its last part from b. `whole[i]`: node i as a ring of one. `first`: where the
    head's first part ends.
    """

    parts: Floats
    hops: Floats
    heads: Floats
    whole: Floats
    first: int

    def within(self, stage_s: float) -> Tables:
        """Return the tables without what takes one node longer than so long."""
        parts, heads, whole = (
            np.where(table <= stage_s, table, np.inf)
            for table in (self.parts, self.heads, self.whole)
        )
        return Tables(parts, self.hops, heads, whole, self.first)


class Prices:
    """One problem: these nodes, this model, these aims. `first` as in `Tables`."""

    def __init__(
        self, model: Model, nodes: Sequence[Node], links: Links, aims: Aims, first: int
    ) -> None:
        self.model, self.nodes, self.links, self.aims, self.first = model, nodes, links, aims, first
        layers = len(model.layer_bytes)
        self.edges = [min(layers, edge * model.period) for edge in range(model.rounds + 1)]
        self.weights = _at(self.edges, model.layer_bytes)
        self.kv = _at(self.edges, (model.kv_bytes,) * layers)
        self.flops = _at(self.edges, model.flops)
        self.decode = np.array([node.decode_bytes_s or DECODE_BYTES_S for node in nodes])
        self.prefill = np.array([node.prefill_flop_s or PREFILL_FLOP_S for node in nodes])
        self.own = np.array([node.stage_s for node in nodes])
        self.own_rows = np.array([node.row_s for node in nodes])
        # Bytes that fit beside the share for buffers.
        free = np.array([float(node.free_bytes) for node in nodes])
        self.room = (free - model.buffer_bytes) / OVERHEAD

    @cached_property
    def held(self) -> Floats:
        """Bytes that rounds [0, x) take in memory: weights, and KV cache for the whole context."""
        return self.weights + self.kv * self.aims.context

    @cached_property
    def fits(self) -> Truths:
        """Whether node i can hold rounds [x, y) as one part: its memory, and the cut rule."""
        sizes = self.held[None, :] - self.held[:, None]
        return np.asarray(self.allowed[None] & (sizes[None] <= self.room[:, None, None]))

    @cached_property
    def allowed(self) -> Truths:
        """Whether rounds [x, y) may be a part."""
        return allowed_parts(self.model)

    @cached_property
    def head_room(self) -> tuple[Truths, Truths]:
        """Whether node i fits as head with its last part from b, and as a ring of one."""
        rounds, first = self.model.rounds, self.first
        may = np.array([self._may_head(node) for node in self.nodes])
        held = self.held[first] + self.held[rounds] - self.held + self.model.head_bytes
        last = self.allowed[:, rounds] & (np.arange(rounds + 1) > first)
        split = may[:, None] & last[None] & (held[None] <= self.room[:, None])
        whole = may & (self.held[rounds] + self.model.head_bytes <= self.room)
        return split, whole

    def decoding(self, rows: int) -> Tables:
        """Return the costs of frames with the next tokens of so many streams."""
        behind = rows * self.aims.behind
        return self.tables(Frame(rows, behind, rows, behind))

    def tables(self, frame: Frame) -> Tables:
        """Return the costs of such a frame."""
        rounds, first = self.model.rounds, self.first
        time = self._time(frame)
        parts = time[:, None, :] - time[:, :, None] + self.own[:, None, None]
        output = self.model.output_bytes
        # The same estimate for the output matrix as for layers: two operations for each byte.
        reads, beyond = self._several(frame.outputs)
        ends = reads * output / self.decode + beyond * 2.0 * output / self.prefill
        ends = ends + frame.outputs * self.own_rows
        last = time[:, rounds, None] - time
        heads = last + time[:, first, None] + (ends + 2 * self.own)[:, None]
        split, alone = self.head_room
        return Tables(
            np.where(self.fits, parts, np.inf), self._hops(frame.rows),
            np.where(split, heads, np.inf),
            np.where(alone, time[:, rounds] + ends + self.own, np.inf), first,
        )  # fmt: skip

    def fetched(self, node: int, first: int, last: int) -> float:
        """Return the bytes of rounds [first, last) that a node lacks."""
        return float(self._lacking[node, last] - self._lacking[node, first])

    @cached_property
    def fetch_bytes_s(self) -> Floats:
        """How fast each node fetches weights: from the fastest of those that have them all."""
        everything = frozenset(range(len(self.model.layer_bytes)))
        sources = [node for node in self.nodes if node.held >= everything] or self.nodes
        return np.array([
            max((self.links.between(source.node, node.node).bytes_s
                 for source in sources if source.node != node.node), default=np.inf) or _STALLED
            for node in self.nodes
        ])  # fmt: skip

    @cached_property
    def _lacking(self) -> Floats:
        return np.array([
            _at(self.edges, [size * (layer not in node.held)
                             for layer, size in enumerate(self.model.layer_bytes)])
            for node in self.nodes
        ])  # fmt: skip

    def _time(self, frame: Frame) -> Floats:
        """Return what rounds [0, x) take each node, without its own time for a frame."""
        reads, beyond = (each[:, None] for each in self._several(frame.rows))
        time = reads * self.weights / self.decode[:, None]
        time = time + self._behind_s(frame) + beyond * self.flops / self.prefill[:, None]
        if self.aims.horizon_tokens is not None:
            moves = self._lacking / self.fetch_bytes_s[:, None]
            time = time + frame.rows * moves / self.aims.horizon_tokens
        return np.asarray(time)

    def _behind_s(self, frame: Frame) -> Floats:
        """Return what the tokens behind a frame's rows take each node in rounds [0, x)."""
        counts = np.array(self.edges, dtype=np.float64)
        attending = frame.attended * self.model.attended
        rate = np.array([node.attended_s or np.inf for node in self.nodes])
        layer_s = np.maximum(frame.read * self.model.kv_bytes / self.decode, attending / rate)
        return np.asarray(layer_s[:, None] * counts)

    def _several(self, rows: int) -> tuple[Floats, Floats]:
        """Return how often each node reads the weights, in effect, and for how many rows beyond."""
        reads, beyond = np.ones(len(self.nodes)), np.full(len(self.nodes), rows - 1.0)
        for at, node in enumerate(self.nodes):
            if node.batches:
                reads[at] = max(1.0, np.interp(rows, (1, *BATCHES), (1.0, *node.batches)))
                beyond[at] = max(0, rows - BATCHES[-1])
        return reads, beyond

    def _hops(self, rows: int) -> Floats:
        payload = rows * self.model.row_bytes
        return np.array([
            [np.inf if one is other else self.links.between(one.node, other.node).hop_s(payload)
             for other in self.nodes]
            for one in self.nodes
        ])  # fmt: skip

    def _may_head(self, node: Node) -> bool:
        aims = self.aims
        tagged = not aims.head_tags or bool(node.tags & aims.head_tags)
        return node.head_allowed and tagged and aims.head in ("", node.node)


def allowed_parts(model: Model) -> Truths:
    """Return whether rounds [x, y) of a model may be a part."""
    layers, rounds = len(model.layer_bytes), model.rounds
    edges = [min(layers, edge * model.period) for edge in range(rounds + 1)]
    return np.array([[x < y and model.allows(x, y) for y in edges] for x in edges])


def ring_sizes(model: Model) -> dict[int, int]:
    """Return how many nodes a ring of several may have, by the cut rule alone.

    The value is the end of the shortest first part of the head with which that number is possible.
    """
    allowed, rounds = allowed_parts(model), model.rounds
    # after[x, n]: rounds from x on can be cut into n parts.
    after = np.zeros((rounds + 1, rounds + 1), dtype=bool)
    after[rounds, 0] = True
    for edge in range(rounds - 1, 0, -1):
        for stop in np.flatnonzero(allowed[edge]):
            after[edge, 1:] |= after[stop, :-1]
    sizes: dict[int, int] = {}
    for first in np.flatnonzero(allowed[0, :rounds]):
        for parts in np.flatnonzero(after[first, 2:]) + 2:
            sizes.setdefault(int(parts), int(first))
    return sizes


def _at(edges: Sequence[int], sizes: Sequence[float]) -> Floats:
    """Return the sums of sizes up to each edge."""
    return np.concatenate([[0.0], np.cumsum(np.asarray(sizes, dtype=np.float64))])[list(edges)]
