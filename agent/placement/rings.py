"""Several rings at once, each with the whole model, for more answers at the same time.

A core. Where a model fits on several nodes, a ring on each makes more tokens in all than one ring
over all of them, and loses less when a node goes. `agent.deploy` asks for all rings of a deployment
before there is any (`ways`), and for one of them beside the others later (`agent.deploy.beside`).
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

# So many numbers of rings in a row that make fewer tokens than the best one end the search: streams
# that cannot be shared out evenly may cost one number something, and not the next.
_IN_VAIN = 2


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
    links: Links | None = None, heads: Sequence[str] = (),
) -> list[Plan]:  # fmt: skip
    """Return rings without a common node that share the streams evenly, each with all the context.

    One after another takes the best nodes that are left, all but the last of at most so many
    nodes; of some such limits, that with the most tokens/s in all. It is exact where each ring is
    one node, and a good guess elsewhere. Without a number of rings it is the one with the most
    tokens/s. `heads` are the nodes that have to be the heads of the first rings, in order, ""
    where any may; else `aims.head` is the first one's. Raises as `plan` does where there is not
    even one ring, or not as many.
    """
    among = links or Links()
    if rings is not None:
        return _explained(_best(model, nodes, aims, rings, among, heads))
    return ways(model, nodes, aims, among)[0]


def ways(
    model: Model, nodes: Sequence[Node], aims: Aims, links: Links, rings: int | None = None
) -> list[list[Plan]]:
    """Return the rings as `plan_rings` does, and behind them other numbers of rings.

    These are one, and of `rings` or of the best number one less and one more, as far as they can
    be. Raises as `plan_rings` does.
    """
    found: dict[int, list[_Made]] = {}
    most = min(len(nodes), max(aims.streams, rings or 1))
    if rings is not None:
        found[rings] = _best(model, nodes, aims, rings, links)
        counts = [count for count in (1, rings - 1, rings + 1) if 1 <= count <= most]
    else:
        found[1] = _best(model, nodes, aims, 1, links)
        counts = list(range(2, most + 1))
    best, worse = rings or 1, 0
    for count in counts:
        if count in found:
            continue
        try:
            found[count] = _best(model, nodes, aims, count, links)
        except (PeerError, ModelError, UsageError):
            if rings is None:
                break
            continue
        if rings is None:
            worse = worse + 1 if _total(found[count]) <= _total(found[best]) else 0
            if worse == _IN_VAIN:
                break
            best = best if worse else count
    others = [count for count in (1, best - 1, best + 1) if count in found and count != best]
    return [_explained(found[count]) for count in (best, *dict.fromkeys(others))]


def _explained(rings: Sequence[_Made]) -> list[Plan]:
    return [explained(one.asked, one.choice, one.chooser.seen) for one in rings]


def _total(rings: Sequence[_Made]) -> float:
    return sum(one.tokens_s for one in rings)


def _best(
    model: Model, nodes: Sequence[Node], aims: Aims, rings: int, links: Links,
    heads: Sequence[str] = (),
) -> list[_Made]:  # fmt: skip
    """Return the best of the tries with different limits; the first error where all fail."""
    if not 1 <= rings <= len(nodes):
        raise UsageError(
            f"{len(nodes)} nodes cannot make {rings} rings",
            hint="Each ring needs a node of its own.",
        )
    spare = len(nodes) - rings + 1
    limits = [spare] if rings == 1 else [spare, *(size for size in _SMALL if size < spare)]
    if aims.nodes is not None or model.uncut:
        limits = limits[:1]  # they would all be the same
    found: list[list[_Made]] = []
    errors = []
    wanted = [*(heads or (aims.head,)), *[""] * rings][:rings]
    for limit in limits:
        try:
            found.append(_in_turn(model, nodes, aims, wanted, links, limit))
        except (PeerError, ModelError, UsageError) as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return max(found, key=_total)


def _in_turn(
    model: Model, nodes: Sequence[Node], aims: Aims, heads: Sequence[str], links: Links, limit: int
) -> list[_Made]:
    left, made, rings = list(nodes), list[_Made](), len(heads)
    for number in range(rings):
        following = rings - 1 - number
        # The first rings have one stream more where they cannot be shared out evenly.
        streams = max(1, (aims.streams + following) // rings)
        # Each has room for the whole context, and no more streams or tokens come for that.
        share = replace(aims, streams=streams, kept=int(aims.behind), head=heads[number])
        if aims.nodes is None:
            most = min(limit, len(left) - following) if following else len(left)
            share = replace(share, most=min(most, aims.most or most))
        later = heads[number + 1 :]
        asked = problem(model, [n for n in left if n.node not in later], links, share)
        chooser = asked.chooser()
        choice = chooser.best(share.objective, asked.least, asked.most, asked.must)
        if choice is None:
            raise does_not_fit(asked)
        made.append(_Made(asked, choice, chooser))
        left = [node for node in left if node.node not in made[-1].taken]
    return made
