"""Several rings at once, each with the whole model, for more answers at the same time.

A core. Where a model fits on several nodes, a ring on each makes more tokens in all than one ring
over all of them, and loses less when a node goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.errors import ModelError, PeerError, UsageError
from agent.placement.explain import explained
from agent.placement.inputs import Aims, Links, Model, Node
from agent.placement.objectives import Choice, Chooser
from agent.placement.problem import Problem, does_not_fit, problem
from agent.placement.results import Plan

# Rings of at most so many nodes are tried as well, that all may have enough.
_SMALL = (4, 3, 2, 1)


@dataclass(frozen=True)
class _Made:
    """One ring of several."""

    asked: Problem
    choice: Choice
    chooser: Chooser

    @property
    def tokens_s(self) -> float:
        return self.asked.aims.streams / self.choice.round_s

    @property
    def taken(self) -> set[str]:
        return {self.asked.nodes[node].node for node in self.choice.ring.nodes}


def plan_rings(
    model: Model, nodes: Sequence[Node], aims: Aims, rings: int | None = None,
    links: Links | None = None,
) -> list[Plan]:  # fmt: skip
    """Return rings without a common node that share the streams and the context evenly.

    One after another takes the best nodes that are left, all but the last of at most so many
    nodes; of some such limits, that with the most tokens/s in all. It is exact where each ring is
    one node, and a good guess elsewhere. Without a number of rings it is the one with the most
    tokens/s. Raises as `plan` does where there is not even one ring, or not as many.
    """
    among = links or Links()
    if rings is not None:
        return _explained(_best(model, nodes, aims, rings, among))
    best = _best(model, nodes, aims, 1, among)
    for count in range(2, min(len(nodes), aims.streams) + 1):
        try:
            more = _best(model, nodes, aims, count, among)
        except (PeerError, ModelError, UsageError):
            break
        if _total(more) <= _total(best):
            break
        best = more
    return _explained(best)


def _explained(rings: Sequence[_Made]) -> list[Plan]:
    return [explained(one.asked, one.choice, one.chooser.seen) for one in rings]


def _total(rings: Sequence[_Made]) -> float:
    return sum(one.tokens_s for one in rings)


def _best(model: Model, nodes: Sequence[Node], aims: Aims, rings: int, links: Links) -> list[_Made]:
    """Return the best of the tries with different limits; the first error where all fail."""
    if not 1 <= rings <= len(nodes):
        raise UsageError(
            f"{len(nodes)} nodes cannot make {rings} rings",
            hint="Each ring needs a node of its own.",
        )
    spare = len(nodes) - rings + 1
    limits = [spare] if rings == 1 else [spare, *(size for size in _SMALL if size < spare)]
    found: list[list[_Made]] = []
    errors = []
    for limit in limits:
        try:
            found.append(_in_turn(model, nodes, aims, rings, links, limit))
        except (PeerError, ModelError, UsageError) as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return max(found, key=_total)


def _in_turn(
    model: Model, nodes: Sequence[Node], aims: Aims, rings: int, links: Links, limit: int
) -> list[_Made]:
    left, made = list(nodes), list[_Made]()
    for number in range(rings):
        following = rings - 1 - number
        # The first rings have one stream more where they cannot be shared out evenly.
        streams = max(1, (aims.streams + following) // rings)
        share = replace(aims, streams=streams, context=-(-aims.context // rings))
        if aims.nodes is None:
            most = min(limit, len(left) - following) if following else len(left)
            share = replace(share, most=min(most, aims.most or most))
        asked = problem(model, left, links, share)
        chooser = asked.chooser()
        choice = chooser.best(share.objective, asked.least, asked.most, asked.must)
        if choice is None:
            raise does_not_fit(asked)
        made.append(_Made(asked, choice, chooser))
        left = [node for node in left if node.node not in made[-1].taken]
    return made
