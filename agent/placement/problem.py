"""What is asked, checked: which nodes may take part, how many, and what cannot be.

A core. Turns nodes, model and aims into the problem that `plan.py` has solved, or into an error
that says what is missing and what would help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agent.errors import CoveyError, ModelError, PeerError, UsageError
from agent.placement.inputs import OVERHEAD, Aims, Links, Model, Node
from agent.placement.objectives import Chooser
from agent.placement.prices import Prices, ring_sizes
from agent.placement.search import FEW

# Of the usual work, to see what would fit instead.
_GLANCE = 0.1
_PEERS = "`agent peers` shows who is there."


@dataclass(frozen=True)
class Problem:
    """Nodes that may take part, those that may not and why, and how many there shall be."""

    model: Model
    nodes: tuple[Node, ...]
    refused: Mapping[str, str]  # by name: a clause
    links: Links
    aims: Aims
    least: int
    most: int
    first: int  # where the head's first part ends, in rounds

    @property
    def must(self) -> list[int]:
        """The nodes that have to be in the ring, by their place in `nodes`."""
        return [at for at, node in enumerate(self.nodes) if node.node in self.aims.through]

    def prices(self, aims: Aims | None = None) -> Prices:
        """Return the costs, for these or other aims."""
        return Prices(self.model, self.nodes, self.links, aims or self.aims, self.first)

    def chooser(self, share: float = 1.0) -> Chooser:
        """Return what finds rings for it; with many nodes for a share of the usual work."""
        return Chooser(self.prices(), share)


def problem(model: Model, nodes: Sequence[Node], links: Links, aims: Aims) -> Problem:
    """Return the problem; raises UsageError and PeerError for what cannot be asked."""
    _check(aims)
    refused = {node.name: why for node in nodes if (why := _refusal(node, aims))}
    usable = sorted(
        (node for node in nodes if not _refusal(node, aims)),
        key=lambda node: (-node.free_bytes, node.name, node.node),
    )
    _check_named(usable, nodes, aims)
    least, most = aims.counts
    if model.uncut and (least > 1 or len(aims.through - {aims.head}) > 1):
        raise UsageError(
            f"the model runs on one node, not on {max(least, len(aims.through))}: {model.uncut}",
            hint=f"Ask for 1 node, or for no number of them. {model.hint}".strip(),
        )
    if least > len(usable):
        raise PeerError(
            f"a ring of {least} nodes was asked for, and {len(usable)} can be reached"
            f" now{' and may take part' if refused else ''}",
            hint=_PEERS,
        )
    sizes, largest = _sizes(model)
    top = min(most or largest, largest, len(usable))
    wanted = [size for size in sizes if least <= size <= top]
    if least > 1 and not wanted and not model.in_line:
        raise UsageError(
            f"a model of {len(model.layer_bytes)} layers{_in_rounds(model)}"
            + (f" can be cut over at most {largest} nodes" if least > largest
               else f" cannot be cut over {least} nodes")
        )  # fmt: skip
    first = min((sizes[size] for size in wanted), default=1)
    if not wanted and not model.in_line:
        top = 1
    return Problem(model, tuple(usable), refused, links, aims, least, top, first)


def _sizes(model: Model) -> tuple[dict[int, int], int]:
    """Return how many nodes rings may have, as `ring_sizes` does, and the most of them."""
    if model.uncut:
        return {}, 1
    if model.in_line:
        return {}, model.nodes_max
    sizes = {n: first for n, first in ring_sizes(model).items() if n <= model.nodes_max}
    return sizes, max([1, *sizes])


def does_not_fit(asked: Problem) -> CoveyError:
    """Return the error for a problem without a solution: what is missing, and what would help."""
    model, aims, nodes = asked.model, asked.aims, asked.nodes
    cache = model.kv_bytes * len(model.layer_bytes) * aims.context
    needed = int((sum(model.layer_bytes) + cache + model.head_bytes) * OVERHEAD)
    largest = max(nodes, key=lambda node: node.free_bytes)
    if not _heads(asked):
        return UsageError(
            "no node may be the ring's head: " + _head_wish(aims),
            hint="Give a node such a tag, or ask for another.",
        )
    if asked.most == 1:
        heads = _heads(asked)
        roomy = max(heads, key=lambda node: node.free_bytes)
        why = f"; it runs on one node, since {model.uncut}" if model.uncut else ""
        return ModelError(
            f"the model needs about {needed >> 20} MiB of memory, and {roomy.name} has"
            f" {roomy.free_bytes >> 20} MiB free{why}",
            hint="Deploy it on a node with more memory, or take a smaller quantisation."
            f" {model.hint}".rstrip(),
        )
    free = sum(node.free_bytes for node in nodes)
    head = max(_heads(asked), key=lambda node: node.free_bytes)
    own = int((model.head_bytes + min(model.layer_bytes)) * OVERHEAD)
    said = (
        f"the model needs about {needed >> 20} MiB of memory, and the nodes have {free >> 20} MiB"
        f" free, the largest {largest.free_bytes >> 20} MiB"
    )
    if free >= needed:
        can = "can" if len(nodes) <= FEW else "was found to"
        said += (
            f"; {head.name} as head needs at least {own >> 20} MiB and has"
            f" {head.free_bytes >> 20} MiB"
            if own > head.free_bytes
            else f"; no {_counted(asked)} {can} share it out"
        )
    return ModelError(said, hint=_what_would_help(asked, cache))


def _what_would_help(asked: Problem, cache: int) -> str:
    def possible(aims: Aims, most: int) -> bool:
        other = replace(asked, aims=aims, most=most, least=1)
        return other.chooser(_GLANCE).latency(1, most, other.must) is not None

    largest = len(asked.model.layer_bytes)
    if asked.aims.nodes is not None and possible(asked.aims, largest):
        return "It fits on another number of nodes; ask for none in particular."
    if asked.aims.most is not None and possible(asked.aims, largest):
        return f"It fits on more than {asked.aims.most} nodes."
    if cache and possible(replace(asked.aims, context=asked.aims.context // 2), asked.most):
        return (
            f"With half the context it would fit: {asked.aims.context} tokens take"
            f" {int(cache * OVERHEAD) >> 20} MiB."
        )
    return "Add nodes or take a smaller quantisation."


def _counted(asked: Problem) -> str:
    if asked.least == asked.most:
        return f"ring of {asked.least} nodes"
    return f"ring of at most {asked.most} nodes" if asked.aims.most else "ring of them"


def _heads(asked: Problem) -> list[Node]:
    aims = asked.aims
    return [
        node for node in asked.nodes
        if node.head_allowed and (not aims.head_tags or node.tags & aims.head_tags)
        and aims.head in ("", node.node)
    ]  # fmt: skip


def _head_wish(aims: Aims) -> str:
    wishes = []
    if aims.head_tags:
        wishes.append(f"it needs a tag of {_listed(aims.head_tags)}")
    if aims.head:
        wishes.append("one node was named for it, and may not be it")
    return " and ".join(wishes) or "none of them is allowed to be"


def _refusal(node: Node, aims: Aims) -> str:
    """Return why a node may not take part, as a clause; empty if it may."""
    if node.node in aims.without:
        return "it was excluded"
    if aims.only and not node.tags & aims.only:
        return f"it has no tag of {_listed(aims.only)}"
    if node.tags & aims.never:
        return f"it has the tag {_listed(node.tags & aims.never)}"
    return ""


def _check(aims: Aims) -> None:
    least, most = aims.counts
    if least < 1 or (most is not None and most < 1):
        raise UsageError(
            f"a ring of {least if least < 1 else most} nodes is impossible",
            hint="Ask for at least 1.",
        )
    if most is not None and least > most:
        raise UsageError(f"a ring of at least {least} and at most {most} nodes is impossible")
    if aims.streams < 1 or aims.context < 0 or aims.prompt < 1:
        raise UsageError(
            f"{aims.streams} streams, a context of {aims.context} and a prompt of {aims.prompt}"
            " tokens cannot be placed",
            hint="Streams and prompt are at least 1.",
        )
    if aims.horizon_tokens is not None and not aims.horizon_tokens > 0:
        raise UsageError("the horizon over which fetching is paid is more than 0 tokens")


def _check_named(usable: Sequence[Node], nodes: Sequence[Node], aims: Aims) -> None:
    """Raise for a node that is named as head or to be in the ring, and cannot be."""
    there = {node.node for node in usable}
    names = {node.node: node.name for node in nodes}
    for node in sorted({aims.head, *aims.through} - {""} - there):
        if node in names:
            raise UsageError(f"{names[node]} shall be in the ring, and is excluded from it")
        raise PeerError(
            f"node …{node[-6:]} shall be in the ring and cannot be reached", hint=_PEERS
        )
    if not usable:
        raise PeerError("no node that may take part can be reached", hint=_PEERS)


def _in_rounds(model: Model) -> str:
    return f" in rounds of {model.period}" if model.period > 1 else ""


def _listed(tags: frozenset[str]) -> str:
    return ", ".join(sorted(tags))
