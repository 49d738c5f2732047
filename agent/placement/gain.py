"""What a ring that runs would gain by being another one, and what the way there costs.

A core. The ring that runs is priced as plans are, with what is known now; the best other one is
that of `plan.py`, where each token pays its share of the weights that have to be fetched
(`Aims.horizon_tokens`). Used by `agent.deploy.gain`; when a ring moves for it says `moving.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from agent.errors import PeerError
from agent.placement.inputs import UNMEASURED, Aims, Links, Model, Node
from agent.placement.objectives import MORE_LATENCY, Choice, Chooser
from agent.placement.plan import plan
from agent.placement.prices import Prices
from agent.placement.results import Plan, Stage
from agent.placement.search import Ring

# The ring that runs has its memory, whatever is free beside it.
_ROOM_BYTES = 1 << 60
# A plan whose weights are on their way stays unless the best is so much better: among equal nodes
# many cuts are as good, and which of them is the best changes with every millisecond.
_CLEARLY = 1.05
# Of a tenth each, in powers of e.
_STEPS = 1 / math.log(1.1)


@dataclass(frozen=True)
class Gain:
    """The best other ring, beside the one that runs.

    It takes the share `share` less time (0.31: 31 %) by what it is to be good for, `words` says so
    for people, and each token saves `saved_s`. `fetch_s`: how long its weights take to come.
    `guessed` names nodes and links of the two on which nothing was measured.
    """

    plan: Plan
    share: float
    words: str
    saved_s: float
    fetch_s: float
    guessed: tuple[str, ...]


def compared(
    model: Model, nodes: Sequence[Node], aims: Aims, links: Links, stages: Sequence[Stage],
    begun: Plan | None = None,
) -> Gain:  # fmt: skip
    """Compare the ring of these stages, whose head `aims` name, with the best one by `aims`.

    With one that is `begun` instead, unless the best is clearly better. Raises what `plan` raises,
    and PeerError where a node of the ring is not among `nodes`.
    """
    there = {node.node for node in nodes}
    for stage in stages:
        if stage.node not in there:
            raise PeerError(f"{stage.name} has stages of the ring and does not answer")
    held = [replace(node, held=_held(node, model, aims, stages)) for node in nodes]
    best = plan(model, held, aims, links)
    now, streams = _present(model, nodes, aims, links, stages), aims.streams
    if begun is not None and there.issuperset(begun.nodes):
        its = _present(model, nodes, aims, links, begun.stages)
        of_token, of_rate = its.token_s / best.token_s, best.tokens_s * its.round_s / streams
        worse = {"latency": of_token, "throughput": of_rate}.get(
            aims.objective if streams > 1 else "latency", max(of_token, of_rate)
        )
        if worse <= _CLEARLY:
            best = replace(begun, token_s=its.token_s, tokens_s=streams / its.round_s)
    round_s = streams / best.tokens_s if best.tokens_s else now.round_s
    by_token = aims.objective == "latency" or streams == 1
    if aims.objective == "auto":
        # As `auto` chooses among rings: throughput counts where a token is about as fast.
        by_token |= best.token_s > now.token_s * MORE_LATENCY
        by_token |= best.token_s / now.token_s <= round_s / now.round_s
    if by_token:
        share, saved_s = 1 - best.token_s / now.token_s, now.token_s - best.token_s
        words = f"{share:.0%} fewer ms a token".replace("%", " %")
    else:
        share, saved_s = 1 - round_s / now.round_s, (now.round_s - round_s) / streams
        words = f"{now.round_s / round_s - 1:.0%} more tokens/s".replace("%", " %")
    return Gain(
        best, share, words, saved_s, _fetch_s(model, held, links, best),
        _guessed(nodes, links, (stages, best.stages)),
    )  # fmt: skip


def outline(nodes: Sequence[Node], links: Links) -> object:
    """Return what compares as the same where nodes and links have hardly changed: by a tenth."""
    return (
        [
            (node.node, node.tags, _coarse(node.free_bytes), _coarse(node.decode_bytes_s),
             _coarse(node.prefill_flop_s))
            for node in nodes
        ],
        {pair: (_coarse(link.rtt_s + 2 * link.jitter_s), _coarse(link.bytes_s), _coarse(link.loss))
         for pair, link in links.measured.items()},
    )  # fmt: skip


def _coarse(value: float | None) -> int | None:
    return None if value is None or value <= 0 else round(_STEPS * math.log(value))


def _held(node: Node, model: Model, aims: Aims, stages: Sequence[Stage]) -> frozenset[int]:
    """Return the layers whose weights a node has: those of its stages; the head's file has all."""
    if node.node == aims.head:
        return frozenset(range(len(model.layer_bytes)))
    own = (range(stage.first, stage.last) for stage in stages if stage.node == node.node)
    return node.held.union(*own)


def _present(
    model: Model, nodes: Sequence[Node], aims: Aims, links: Links, stages: Sequence[Stage]
) -> Choice:
    """Return what the ring of these stages is predicted to do now."""
    index = {node.node: number for number, node in enumerate(nodes)}
    roomy = [replace(node, free_bytes=_ROOM_BYTES) for node in nodes]
    edges = [min(len(model.layer_bytes), n * model.period) for n in range(model.rounds + 1)]
    way = [
        (index[stage.node], edges.index(stage.first), edges.index(stage.last))
        for stage in stages[1:-1]
    ]
    first = way[0][1] if way else 1
    prices = Prices(model, roomy, links, replace(aims, horizon_tokens=None), first)
    return Chooser(prices).priced(Ring(index[stages[0].node], way, 0.0))


def _fetch_s(model: Model, nodes: Sequence[Node], links: Links, best: Plan) -> float:
    """Return how long a ring's weights take: from its head to each node, over the head's line."""
    held = {node.node: node.held for node in nodes}
    head = best.stages[0].node
    total_s = 0.0
    for stage in best.stages[1:-1]:
        lacking = sum(
            model.layer_bytes[layer]
            for layer in range(stage.first, stage.last) if layer not in held[stage.node]
        )  # fmt: skip
        if lacking:
            total_s += lacking / max(links.between(head, stage.node).bytes_s, 1.0)
    return total_s


def _guessed(
    nodes: Sequence[Node], links: Links, rings: Sequence[Sequence[Stage]]
) -> tuple[str, ...]:
    known = {node.node: node.measured for node in nodes}
    found = []
    for stages in rings:
        found += [stage.name for stage in stages if not known[stage.node]]
        found += [
            f"{one.name} → {other.name}" for one, other in pairwise(stages)
            if one.node != other.node
            and links.between(one.node, other.node).bytes_s == UNMEASURED.bytes_s
        ]  # fmt: skip
    return tuple(dict.fromkeys(found))
