"""Split a model's layers over a head and the stages behind it, by the bytes that each must hold.

A core: it knows sizes, not sockets. The head carries the first and the last layers together with
the embedding and the output matrix, so it gets fewer layers than the others. The split is exact:
among all contiguous splits over the given number of nodes that the model allows, and in which the
head's layers lie half at each end, it finds one whose largest node holds the fewest bytes. It
weighs neither links nor speeds, and `Plan.reasons` says so. Where llama.cpp's RPC spreads a model,
nodes stand in a line instead of a ring: the head has the first layers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.errors import ModelError, PeerError, UsageError


@dataclass(frozen=True)
class ModelSizes:
    """What a split needs to know of a model: bytes a layer, and bytes that only the head holds.

    `uncut` says why it has to stay in one piece, as a clause; empty where it may be cut. `hint`
    says what else could be done then. `in_line`: the head does not have the last layers too.
    """

    layer_bytes: tuple[int, ...]  # weights and KV cache
    head_bytes: int  # embedding, output matrix and output norm
    period: int = 1  # the model may be cut at multiples of so many layers
    allows: Callable[[int, int], bool] = lambda _start, _stop: True  # layers [start, stop) a part?
    uncut: str = ""
    hint: str = ""
    in_line: bool = False
    nodes_max: int = 10_000

    @property
    def rounds(self) -> int:
        """How many rounds of `period` layers there are; the last one may be shorter."""
        return -(-len(self.layer_bytes) // self.period)


@dataclass(frozen=True)
class Candidate:
    """A node that could hold a stage: its id as text, its name, and the memory it has free."""

    node: str
    name: str
    free_bytes: int


@dataclass(frozen=True)
class Stage:
    """Layers [first, last) on one node; the head has two of these, the ring's first and last."""

    node: str
    name: str
    first: int
    last: int


@dataclass(frozen=True)
class Plan:
    """The stages in the order in which a token passes them, and why it is so."""

    stages: tuple[Stage, ...]
    reasons: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether one node runs the whole model."""
        return len(self.stages) == 1


# What a loaded stage needs beside weights and KV cache (compute buffers, the process), as a share
# of them: an estimate on the safe side for large models.
_OVERHEAD = 1.25


def plan(
    sizes: ModelSizes, head: Candidate, others: Sequence[Candidate], nodes: int | None
) -> Plan:
    """Return the plan with `head` as head and, behind it, the candidates with most free memory.

    `nodes` is how many nodes to use, the head included; None takes the fewest on which the model
    fits: one node that fits is one node. A model that cannot be cut goes on the head. Raises
    PeerError when fewer nodes are there than asked for, UsageError when the model has too few
    layers or stays in one piece, ModelError when it fits on no number of them.
    """
    if sizes.uncut:
        return _whole(sizes, head, nodes)
    ranked = sorted(others, key=lambda other: (-other.free_bytes, other.name, other.node))
    available = 1 + len(ranked)
    most_nodes = min(_most_nodes(sizes), sizes.nodes_max)
    if nodes is not None:
        if nodes < 1:
            raise UsageError(f"a ring of {nodes} nodes is impossible", hint="Ask for at least 1.")
        if nodes > available:
            raise PeerError(
                f"a ring of {nodes} nodes was asked for, and {available} can be reached now",
                hint="`agent peers` shows who is there.",
            )
        stages = _split(sizes, [head, *ranked[: nodes - 1]]) if nodes <= most_nodes else None
        if stages is None:
            fewer = range(1, min(nodes, most_nodes + 1))
            most = max(n for n in fewer if _split(sizes, [head, *ranked[: n - 1]]))
            raise UsageError(
                f"a model of {len(sizes.layer_bytes)} layers{_in_rounds(sizes)} can be cut over at"
                f" most {most} nodes"
            )
        return Plan(stages, _reasons(stages, sizes, f"{nodes} nodes were asked for"))
    for count in range(1, min(available, most_nodes) + 1):
        chosen = [head, *ranked[: count - 1]]
        stages = _split(sizes, chosen)
        if stages is not None and _fits(stages, sizes, chosen):
            why = "it fits on one node" if count == 1 else f"it needs {count} nodes' memory"
            return Plan(stages, _reasons(stages, sizes, why))
    needed = int((sum(sizes.layer_bytes) + sizes.head_bytes) * _OVERHEAD)
    free = head.free_bytes + sum(other.free_bytes for other in ranked)
    raise ModelError(
        f"the model needs about {needed >> 20} MiB of memory, and the nodes have {free >> 20} MiB"
        f" free, the largest {max(c.free_bytes for c in [head, *ranked]) >> 20} MiB",
        hint="Add nodes or take a smaller quantisation.",
    )


def _whole(sizes: ModelSizes, head: Candidate, nodes: int | None) -> Plan:
    if nodes is not None and nodes != 1:
        raise UsageError(
            f"the model runs on one node, not on {nodes}: {sizes.uncut}",
            hint=f"Ask for 1 node, or for no number of them. {sizes.hint}".strip(),
        )
    stages = (Stage(head.node, head.name, 0, len(sizes.layer_bytes)),)
    if not _fits(stages, sizes, [head]) and nodes is None:
        needed = int(_held(stages, sizes, head.node) * _OVERHEAD)
        raise ModelError(
            f"the model needs about {needed >> 20} MiB of memory, and {head.name} has"
            f" {head.free_bytes >> 20} MiB free; it runs on one node, since {sizes.uncut}",
            hint="Deploy it on a node with more memory, or take a smaller quantisation."
            f" {sizes.hint}".rstrip(),
        )
    return Plan(stages, _reasons(stages, sizes, f"it runs on one node, since {sizes.uncut}"))


def _most_nodes(sizes: ModelSizes) -> int:
    """A ring's head needs two rounds (its first and its last), each other node one."""
    if sizes.in_line:
        return sizes.rounds
    return 1 if sizes.rounds < 3 else sizes.rounds - 1


def _in_rounds(sizes: ModelSizes) -> str:
    return f" in rounds of {sizes.period}" if sizes.period > 1 else ""


def _split(sizes: ModelSizes, nodes: Sequence[Candidate]) -> tuple[Stage, ...] | None:
    """Return the best split over these nodes, None where there is none; it counts in rounds."""
    layers = len(sizes.layer_bytes)
    head, *middle = nodes
    if not middle:
        return (Stage(head.node, head.name, 0, layers),)
    if sizes.in_line:
        return _line(sizes, nodes)
    rounds = sizes.rounds
    edges = [min(layers, edge * sizes.period) for edge in range(rounds + 1)]
    held = [[_part_bytes(sizes, first, last) for last in edges] for first in edges]
    best: tuple[float, list[int]] | None = None
    for own in range(2, rounds - len(middle) + 1):
        heads = []
        for first in sorted({own - own // 2, own // 2}, reverse=True):
            last = rounds - (own - first)
            ends = sizes.layer_bytes[: edges[first]] + sizes.layer_bytes[edges[last] :]
            heads.append(sizes.head_bytes + sum(ends))
            if best is not None and heads[-1] >= best[0]:
                continue
            largest, cuts = _partition(held, first, last, len(middle))
            worst = max(heads[-1], largest, held[0][first], held[last][rounds])
            if worst < (math.inf if best is None else best[0]):
                best = worst, [0, *cuts, rounds]
        if best is not None and min(heads) >= best[0]:
            break  # more layers on the head only make the head larger
    if best is None:
        return None
    cuts = [edges[cut] for cut in best[1]]
    owners = [head, *middle, head]
    return tuple(
        Stage(owner.node, owner.name, first, last)
        for owner, first, last in zip(owners, cuts[:-1], cuts[1:], strict=True)
    )


def _line(sizes: ModelSizes, nodes: Sequence[Candidate]) -> tuple[Stage, ...] | None:
    """Return the best split in which each node has one part, the head the first."""
    layers = len(sizes.layer_bytes)
    held = [[_part_bytes(sizes, first, last) for last in range(layers + 1)]
            for first in range(layers + 1)]  # fmt: skip
    best: tuple[float, list[int]] | None = None
    for own in range(1, layers - len(nodes) + 2):
        largest, cuts = _partition(held, own, layers, len(nodes) - 1)
        worst = max(sizes.head_bytes + held[0][own], largest)
        if worst < (math.inf if best is None else best[0]):
            best = worst, [0, *cuts]
    if best is None:
        return None
    return tuple(
        Stage(owner.node, owner.name, first, last)
        for owner, first, last in zip(nodes, best[1][:-1], best[1][1:], strict=True)
    )


def _part_bytes(sizes: ModelSizes, first: int, last: int) -> float:
    """Return the bytes of layers [first, last); infinitely many where they may not be a part."""
    allowed = first < last and sizes.allows(first, last)
    return sum(sizes.layer_bytes[first:last]) if allowed else math.inf


def _partition(
    held: Sequence[Sequence[float]], first: int, last: int, parts: int
) -> tuple[float, list[int]]:
    """Cut rounds [first, last) into contiguous parts with the least maximum: (maximum, cut points).

    `held` has the bytes of each part by its two ends. The cut points include both ends; a maximum
    that is infinite says that no cut is allowed. Dynamic programming over prefixes.
    """
    count = last - first
    least = [[math.inf] * (count + 1) for _ in range(parts + 1)]
    cut_at = [[0] * (count + 1) for _ in range(parts + 1)]
    for end in range(1, count + 1):
        least[1][end] = held[first][first + end]
    for part in range(2, parts + 1):
        for end in range(part, count + 1):
            least[part][end], cut_at[part][end] = min(
                (max(least[part - 1][cut], held[first + cut][first + end]), cut)
                for cut in range(part - 1, end)
            )
    cuts = [count]
    for part in range(parts, 1, -1):
        cuts.append(cut_at[part][cuts[-1]])
    return least[parts][count], [first + cut for cut in (0, *reversed(cuts))]


def _held(stages: Sequence[Stage], sizes: ModelSizes, node: str) -> int:
    layers = sum(
        sum(sizes.layer_bytes[stage.first : stage.last]) for stage in stages if stage.node == node
    )
    return layers + (sizes.head_bytes if stages[0].node == node else 0)


def _fits(stages: Sequence[Stage], sizes: ModelSizes, nodes: Sequence[Candidate]) -> bool:
    return all(_held(stages, sizes, n.node) * _OVERHEAD <= n.free_bytes for n in nodes)


def _reasons(stages: Sequence[Stage], sizes: ModelSizes, why: str) -> tuple[str, ...]:
    seen: dict[str, str] = {}
    for stage in stages:
        held = _held(stages, sizes, stage.node) / 2**20
        role = "head: embedding, output and " if stage.node == stages[0].node else ""
        count = sum(s.last - s.first for s in stages if s.node == stage.node)
        seen[stage.node] = f"{stage.name}: {role}{count} layers, {held:.1f} MiB"
    count_text = "1 node" if len(seen) == 1 else f"{len(seen)} nodes"
    return (f"{count_text}: {why}; split by bytes, links are not weighed", *seen.values())
