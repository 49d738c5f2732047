"""A model spread in a line by llama.cpp's RPC: the head has the first layers, each node one part.

A core. There every boundary goes through the head, so the order of nodes is nothing, and links are
not weighed: it takes the head and the nodes with most free memory, as few as hold the model, and
the split whose largest node holds the fewest bytes. Used by `plan.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.errors import UsageError
from agent.placement.inputs import OVERHEAD, Aims, Model, Node
from agent.placement.results import Memory, Plan, Stage


def line(model: Model, head: Node, others: Sequence[Node], aims: Aims) -> Plan | None:
    """Return the plan; None where the model does not fit. UsageError for too many nodes."""
    ranked = sorted(others, key=lambda other: (-other.free_bytes, other.name, other.node))
    layers = len(model.layer_bytes)
    most = min(layers, model.nodes_max)
    least, asked_most = aims.counts
    if least > most:
        raise UsageError(f"a model of {layers} layers can be spread over at most {most} nodes")
    for count in range(least, min(1 + len(ranked), most, asked_most or most) + 1):
        chosen = [head, *ranked[: count - 1]]
        stages = _split(model, chosen, aims.context)
        memory = tuple(
            Memory(node.node, node.name, int(OVERHEAD * held), node.free_bytes)
            for node, held in zip(chosen, _held(model, stages, aims.context), strict=True)
        )
        if all(one.needed <= one.free for one in memory):
            why = (
                f"{count} nodes were asked for" if aims.nodes else f"it needs {count} nodes' memory"
            )
            why = "it fits on one node" if count == 1 and not aims.nodes else why
            return Plan(stages, _reasons(stages, memory, why), memory=memory)
    return None


def _split(model: Model, nodes: Sequence[Node], context: int) -> tuple[Stage, ...]:
    """Return the split whose largest node holds the fewest bytes; dynamic programming."""
    sizes = _sizes(model, context)
    layers = len(sizes)
    ahead = [0]
    for size in sizes:
        ahead.append(ahead[-1] + size)
    least: list[list[float]] = [[math.inf] * (layers + 1) for _ in nodes]
    cut_at = [[0] * (layers + 1) for _ in nodes]
    for end in range(1, layers + 1):
        least[0][end] = ahead[end] + model.head_bytes
    for part in range(1, len(nodes)):
        for end in range(part + 1, layers + 1):
            least[part][end], cut_at[part][end] = min(
                (max(least[part - 1][cut], ahead[end] - ahead[cut]), cut)
                for cut in range(part, end)
            )
    cuts = [layers]
    for part in range(len(nodes) - 1, 0, -1):
        cuts.append(cut_at[part][cuts[-1]])
    cuts = [0, *reversed(cuts)]
    return tuple(
        Stage(node.node, node.name, first, last)
        for node, first, last in zip(nodes, cuts[:-1], cuts[1:], strict=True)
    )


def _sizes(model: Model, context: int) -> list[int]:
    return [size + model.kv_bytes * context for size in model.layer_bytes]


def _held(model: Model, stages: Sequence[Stage], context: int) -> list[int]:
    sizes = _sizes(model, context)
    held = [sum(sizes[stage.first : stage.last]) for stage in stages]
    return [held[0] + model.head_bytes, *held[1:]]


def _reasons(stages: Sequence[Stage], memory: Sequence[Memory], why: str) -> tuple[str, ...]:
    said = []
    for stage, one in zip(stages, memory, strict=True):
        role = "head: embedding, output and " if stage is stages[0] else ""
        held = one.needed / OVERHEAD / 2**20
        said.append(f"{stage.name}: {role}{stage.last - stage.first} layers, {held:.1f} MiB")
    counted = "1 node" if len(stages) == 1 else f"{len(stages)} nodes"
    return (f"{counted}: {why}; in a line, split by bytes, links are not weighed", *said)
