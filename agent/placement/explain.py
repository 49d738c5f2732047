"""What a plan says of itself: predictions, memory, alternatives, and why each node is in or out.

A core. Used by `plan.py` once the ring is chosen; nothing here changes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from agent.placement import figures
from agent.placement.inputs import DECODE_BYTES_S, OVERHEAD, Objective
from agent.placement.objectives import Choice, Chooser
from agent.placement.problem import Problem
from agent.placement.results import Alternative, Plan
from agent.placement.search import FEW

_OBJECTIVES: dict[str, Objective] = {"least latency": "latency", "most throughput": "throughput"}
# Up to so many nodes an explanation searches for throughput, which takes longest, as well.
_THOROUGH = 6


@dataclass(frozen=True)
class _Explained:
    """A problem, the ring that was chosen, and what prices rings without the cost of fetching."""

    asked: Problem
    choice: Choice
    chooser: Chooser


def explained(asked: Problem, choice: Choice, seen: Mapping[Objective, Choice]) -> Plan:
    """Return the plan of a ring that was chosen for a problem; `seen`: the best by objective."""
    chooser = Chooser(asked.prices(replace(asked.aims, horizon_tokens=None)))
    priced = replace(chooser.priced(choice.ring), gap=choice.gap)
    it = _Explained(asked, priced, chooser)
    others = _alternatives(it, seen)
    moved = figures.moved(asked, choice.ring)
    first_s = figures.first_s(asked, choice.ring)
    said = [_summary(it, others), *_prediction(it, first_s), *_nodes_in(it), *_unmeasured(it)]
    if moved and asked.aims.horizon_tokens is not None:
        said.append(
            f"{moved / 2**20:.1f} MiB of weights are fetched, which the next"
            f" {asked.aims.horizon_tokens:.0f} tokens are to pay for"
        )
    return Plan(
        figures.stages(asked, choice.ring), (*said, *_nodes_out(it)), priced.token_s,
        asked.aims.streams / priced.round_s, first_s, figures.memory(asked, choice.ring),
        others, moved, choice.gap,
    )  # fmt: skip


def _alternatives(it: _Explained, seen: Mapping[Objective, Choice]) -> tuple[Alternative, ...]:
    """Return the best rings of one node, of two, and by each objective, unless they are alike.

    With more than `_THOROUGH` nodes two nodes are those of least latency, and with more than `FEW`
    there is only what costs no search.
    """
    asked, objective = it.asked, it.asked.aims.objective
    thorough = len(asked.nodes) <= _THOROUGH
    rings: dict[str, Choice | None] = {}
    for title, count in (("one node", 1), ("two nodes", 2)):
        if not asked.most >= count >= len(asked.must):
            continue
        if thorough or count == 1:
            rings[title] = it.chooser.best(objective, count, count, asked.must, exact=False)
        elif len(asked.nodes) <= FEW:
            rings[title] = it.chooser.latency(count, count, asked.must)
    for title, other in _OBJECTIVES.items():
        if other in seen:
            rings[title] = it.chooser.priced(seen[other].ring)
        elif thorough:
            rings[title] = it.chooser.best(other, asked.least, asked.most, asked.must, exact=False)
    return tuple(
        Alternative(
            title, tuple(asked.nodes[node].name for node in one.ring.nodes), one.token_s,
            asked.aims.streams / one.round_s,
        )
        for title, one in rings.items()
        if one is not None and not _alike(one, it.choice)
    )  # fmt: skip


def _alike(one: Choice, other: Choice) -> bool:
    """Return whether two rings of as many nodes do the same, to a thousandth."""
    return (
        len(one.ring.nodes) == len(other.ring.nodes)
        and math.isclose(one.token_s, other.token_s, rel_tol=1e-3)
        and math.isclose(one.round_s, other.round_s, rel_tol=1e-3)
    )


def _measured(it: _Explained) -> bool:
    """Return whether anything is known of the ring's speeds or links."""
    asked, ring = it.asked, it.choice.ring
    order = [*ring.nodes, ring.head]
    ids = [asked.nodes[node].node for node in order]
    return any(asked.nodes[node].measured for node in ring.nodes) or any(
        asked.links.known(one, other) for one, other in pairwise(ids)
    )


def _summary(it: _Explained, others: tuple[Alternative, ...]) -> str:
    asked, count = it.asked, len(it.choice.ring.nodes)
    alone = next((other for other in others if other.title == "one node"), None)
    if asked.model.uncut:
        why = f"it runs on one node, since {asked.model.uncut}"
    elif asked.aims.nodes is not None:
        why = f"{_nodes(count)} {'was' if count == 1 else 'were'} asked for"
    elif count == 1:
        why = "it fits on one node"
        if _measured(it) and len(asked.nodes) > 1 and asked.most > 1:
            several = "no ring of several is better"
            why += f", and {several if not it.choice.gap else 'no better ring was found'}"
    elif alone is not None and asked.least == 1:
        why = f"{_rated(it.choice, asked)}, and on {alone.names[0]} alone {_said(alone, asked)}"
    elif len(asked.must) > 1:
        why = f"{len(asked.must)} of them were asked for by name"
    elif asked.least > 1:
        why = f"at least {asked.least} were asked for"
    else:
        why = "no node alone can hold it" if _measured(it) else f"it needs {count} nodes' memory"
    even = "" if count == 1 or _measured(it) else "; split by bytes, speeds and links are not known"
    return f"{_nodes(count)}: {why}{even}"


def _rated(choice: Choice, asked: Problem) -> str:
    if asked.aims.objective == "latency" or asked.aims.streams == 1:
        return f"a token takes {choice.token_s * 1e3:.1f} ms"
    return f"it makes {asked.aims.streams / choice.round_s:.1f} tokens/s"


def _said(other: Alternative, asked: Problem) -> str:
    if asked.aims.objective == "latency" or asked.aims.streams == 1:
        return f"{other.token_s * 1e3:.1f} ms"
    return f"{other.tokens_s:.1f}"


def _prediction(it: _Explained, first_s: float) -> list[str]:
    if not _measured(it):
        return []
    asked, choice = it.asked, it.choice
    many = (
        f", {asked.aims.streams / choice.round_s:.1f} tokens/s for {asked.aims.streams} streams"
        if asked.aims.streams > 1
        else ""
    )
    return [
        f"predicted: {choice.token_s * 1e3:.1f} ms a token{many}, {first_s:.2f} s to the first"
        f" token of a prompt of {asked.aims.prompt}; within {choice.gap * 100:.1f} % of the best"
    ]


def _nodes_in(it: _Explained) -> list[str]:
    ring, edges, said = it.choice.ring, it.asked.prices().edges, []
    layers = {node: edges[last] - edges[first] for node, first, last in ring.way}
    layers = {ring.head: edges[-1] - sum(layers.values()), **layers}
    for node, size in figures.held(it.asked, ring).items():
        role = "head: embedding, output and " if node == ring.head else ""
        said.append(
            f"{it.asked.nodes[node].name}: {role}{layers[node]} layers, {size / 2**20:.1f} MiB"
        )
    return said


def _unmeasured(it: _Explained) -> list[str]:
    """Return what was assumed, where some of it is measured: figures rest on that."""
    if not _measured(it):
        return []
    asked, ring, said = it.asked, it.choice.ring, []
    slow = [asked.nodes[node].name for node in ring.nodes if not asked.nodes[node].measured]
    if slow:
        said.append(f"unmeasured, taken as {DECODE_BYTES_S / 1e9:.0f} GB/s: {', '.join(slow)}")
    order = [*ring.nodes, ring.head] if ring.way else []
    pairs = [(asked.nodes[one], asked.nodes[other]) for one, other in pairwise(order)]
    unknown = [
        f"{one.name} → {other.name}" for one, other in pairs
        if not asked.links.known(one.node, other.node)
    ]  # fmt: skip
    if unknown:
        taken = asked.links.otherwise
        said.append(
            f"unmeasured, taken as {taken.rtt_s * 1e3:.0f} ms and"
            f" {taken.bytes_s * 8 / 1e6:.0f} Mbit/s: {', '.join(unknown)}"
        )
    return said


def _nodes_out(it: _Explained) -> list[str]:
    asked = it.asked
    said = [f"{name}: left out: {why}" for name, why in asked.refused.items()]
    out = [node for node in range(len(asked.nodes)) if node not in it.choice.ring.nodes]
    if asked.most == 1 and not asked.nodes[1:]:
        return said
    if len(asked.nodes) > FEW:
        if out:
            said.append(f"{_nodes(len(out))} left out: no better ring with them was found")
        return said
    return [*said, *(f"{asked.nodes[node].name}: left out: {_why_out(it, node)}" for node in out)]


def _why_out(it: _Explained, node: int) -> str:
    asked, prices = it.asked, it.asked.prices()
    split, alone = prices.head_room
    if not (prices.fits[node].any() or split[node].any() or alone[node]):
        shares = prices.held[None, :] - prices.held[:, None]
        usual = shares[prices.allowed] if prices.allowed.any() else prices.held[-1:]
        least = usual.min() * OVERHEAD + asked.model.buffer_bytes
        return f"{_gib(asked.nodes[node].free_bytes)} free, its least share needs {_gib(least)}"
    must = [*asked.must, node]
    if asked.model.uncut or len(must) > asked.most:
        return "it is not needed"
    for_one = asked.aims.objective == "latency" or asked.aims.streams == 1
    thorough = len(asked.nodes) <= _THOROUGH and not for_one
    if thorough:
        it_too = it.chooser.best(asked.aims.objective, asked.least, asked.most, must, exact=False)
    else:
        it_too = it.chooser.latency(asked.least, asked.most, must)
    if it_too is None:
        return "no ring with it is possible"
    if not _measured(it):
        return "it is not needed"
    if for_one:
        return (
            f"with it a token takes {it_too.token_s * 1e3:.1f} ms instead of"
            f" {it.choice.token_s * 1e3:.1f}"
        )
    streams = asked.aims.streams
    return (
        f"the {'best' if thorough else 'fastest'} ring with it makes"
        f" {streams / it_too.round_s:.1f} tokens/s instead of"
        f" {streams / it.choice.round_s:.1f}, and a token takes {it_too.token_s * 1e3:.1f} ms"
        f" instead of {it.choice.token_s * 1e3:.1f}"
    )


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
