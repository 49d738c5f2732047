"""What one ring holds, fetches and takes for a prompt.

A core. Used by `explain.py`; what a token takes is priced where rings are compared
(`objectives.py`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from agent.engine.batching import chunk_rows
from agent.placement.inputs import OVERHEAD
from agent.placement.prices import Frame
from agent.placement.problem import Problem
from agent.placement.results import Memory, Stage
from agent.placement.search import Ring, price

# Rows of a batch at most, as engines have them (`agent.engine.spec`).
_BATCH_ROWS = 512


def stages(asked: Problem, ring: Ring) -> tuple[Stage, ...]:
    """Return the stages in the order in which a token passes them."""
    edges = asked.prices().edges
    head = asked.nodes[ring.head]
    if not ring.way:
        return (Stage(head.node, head.name, 0, edges[-1]),)
    middle = [
        Stage(asked.nodes[node].node, asked.nodes[node].name, edges[first], edges[last])
        for node, first, last in ring.way
    ]
    return (
        Stage(head.node, head.name, 0, middle[0].first), *middle,
        Stage(head.node, head.name, middle[-1].last, edges[-1]),
    )  # fmt: skip


def held(asked: Problem, ring: Ring) -> dict[int, int]:
    """Return the bytes of weights and KV cache on each node of the ring."""
    prices = asked.prices()
    parts = {node: prices.held[last] - prices.held[first] for node, first, last in ring.way}
    rest = prices.held[-1] - sum(parts.values()) + asked.model.head_bytes
    return {node: int(size) for node, size in {ring.head: rest, **parts}.items()}


def memory(asked: Problem, ring: Ring) -> tuple[Memory, ...]:
    """Return what each node needs, the head first."""
    return tuple(
        Memory(
            asked.nodes[node].node, asked.nodes[node].name,
            math.ceil(size * OVERHEAD) + asked.model.buffer_bytes,
            asked.nodes[node].free_bytes,
        )
        for node, size in held(asked, ring).items()
    )  # fmt: skip


def moved(asked: Problem, ring: Ring) -> int:
    """Return the bytes of weights that nodes lack."""
    prices = asked.prices()
    rounds = asked.model.rounds
    ends = [(0, rounds)] if not ring.way else [(0, prices.first), (ring.way[-1][2], rounds)]
    parts = [*((ring.head, *end) for end in ends), *ring.way]
    return int(sum(prices.fetched(*part) for part in parts))


def first_s(asked: Problem, ring: Ring) -> float:
    """Return how long a prompt's first token takes: its chunks follow each other round the ring.

    The first chunk goes all the way; each further one comes behind it by what the slowest node
    or link takes. Only the last row has an output.
    """
    order = [*ring.nodes, ring.head]
    hops = [
        asked.links.between(asked.nodes[one].node, asked.nodes[other].node)
        for one, other in pairwise(order)
    ]
    delay_s = sum(link.rtt_s for link in hops) / 2
    chunks = -(-asked.aims.prompt // _chunk_rows(asked.aims.prompt, len(ring.nodes), delay_s))
    rows = -(-asked.aims.prompt // chunks)
    prices = asked.prices(replace(asked.aims, horizon_tokens=None))
    tables = prices.tables(Frame(rows, asked.aims.prompt / 2, 1))
    around = price(tables, ring.head, ring.way)
    if not ring.way:
        return chunks * around
    slowest = max(tables.heads[ring.head, ring.way[-1][2]], *(tables.parts[p] for p in ring.way))
    sent = [rows * asked.model.row_bytes / link.bytes_s for link in hops]
    return float(around + (chunks - 1) * max(slowest, *sent))


def _chunk_rows(prompt: int, nodes: int, delay_s: float) -> int:
    """Return how many tokens of a prompt go at once, as the head has them."""
    if nodes == 1:
        return _BATCH_ROWS
    return min(_BATCH_ROWS, chunk_rows(prompt, nodes, delay_s))
