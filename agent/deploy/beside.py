"""One ring of a deployment of several, planned beside the others. A core.

Each node says which rings of the deployment have part of it; it refuses a second one, so rings
never share a node, whatever their heads have heard. Nodes of a planned ring are its own. Rings
without a plan (new ones, or such that found no room) are planned with this one, so that nobody
takes what another needs: each head plans all of them, in the order of their numbers, and keeps its
own. Where there is not enough for all, those of the highest numbers go without, and a head that
waits for nodes gives its own to a ring of a lower number.
Used by `planning.py`, and `room_for` by who hosts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.deploy.messages import RingHere
from agent.errors import ModelError, NotRunning, PeerError, UsageError
from agent.placement.inputs import Aims, Links, Model, Node
from agent.placement.plan import plan
from agent.placement.results import Plan
from agent.placement.rings import plan_rings

# A head serves so many answers at once. Several rings are wished for to serve more than one ring
# can, so they are planned to share at least as many.
STREAMS = 16


def shared(aims: Aims, rings: int) -> Aims:
    """Return what is asked of all rings together, for what is asked of one."""
    return replace(aims, streams=max(STREAMS, rings))


@dataclass
class Others:
    """The other rings of a deployment of `rings`, as seen from ring `number`, by what nodes tell.

    `best` are the nodes that had best be heads, by number. Nodes are ids.
    """

    number: int
    rings: int
    best: Mapping[int, str] = field(default_factory=dict)
    planned: dict[str, int] = field(default_factory=dict)  # which ring has a node
    heads: dict[int, str] = field(default_factory=dict)  # of those without a plan

    def told(self, node: str, rings: Iterable[RingHere]) -> None:
        """Take in what a node says of the rings that have part of it."""
        for ring in rings:
            if ring.number == self.number:
                continue
            if ring.nodes:
                self.planned |= dict.fromkeys((node, *ring.nodes), ring.number)
            elif ring.head:
                self.heads[ring.number] = node

    @property
    def open(self) -> list[int]:
        """The other rings that have no nodes yet, beside a head perhaps, in order."""
        planned = {*self.planned.values(), self.number}
        return [number for number in range(1, self.rings + 1) if number not in planned]

    @property
    def not_ours(self) -> frozenset[str]:
        """The nodes that this ring cannot have, unless others give way."""
        return frozenset(self.planned) | {
            node for number, node in self.heads.items() if number in self.open
        }

    def plan(
        self, model: Model, nodes: Sequence[Node], aims: Aims, links: Links, *, first: bool = False
    ) -> Plan:
        """Return the plan of this ring, whose head is `aims.head`. Raises as placement does.

        `first`: it answered just now, and comes before those that do not.
        """
        if aims.head in self.planned:
            raise PeerError(f"this node has part in ring {self.planned[aims.head]} of it meanwhile")
        free = [node for node in nodes if node.node not in self.planned]
        numbers = sorted((*self.open, self.number))
        if first:
            numbers.sort(key=lambda number: number != self.number)
        with contextlib.suppress(PeerError, ModelError, UsageError):
            return self._plan(model, free, aims, links, numbers)
        placed: list[int] = []
        for number in numbers[: numbers.index(self.number)]:
            with contextlib.suppress(PeerError, ModelError, UsageError):
                self._plan(model, free, aims, links, [*placed, number])
                placed.append(number)
        placed.append(self.number)
        found = self._plan(model, free, aims, links, placed)
        for number in numbers[numbers.index(self.number) + 1 :]:
            with contextlib.suppress(PeerError, ModelError, UsageError):
                found = self._plan(model, free, aims, links, [*placed, number])
                placed.append(number)
        return found

    def _plan(
        self, model: Model, free: Sequence[Node], aims: Aims, links: Links, numbers: Sequence[int]
    ) -> Plan:
        """Plan these rings, this one as well; of others, heads of lower numbers keep their nodes.

        Without this one it says only whether they can be.
        """
        kept = {
            node for number, node in self.heads.items()
            if number in self.open and number not in numbers and number < self.number
        }  # fmt: skip
        there = [node for node in free if node.node not in kept]
        if len(there) < len(numbers):
            raise PeerError(f"{len(there)} nodes are left for {len(numbers)} rings of it")
        together = shared(aims, self.rings)
        share = replace(
            aims,
            streams=-(-together.streams * len(numbers) // self.rings),
            kept=int(together.behind),
        )
        if list(numbers) == [self.number]:
            return plan(model, there, share, links)
        heads = self._heads(numbers, aims.head, {node.node for node in there} - aims.without)
        if self.number not in numbers:
            there = [node for node in there if node.node != aims.head]
            share = replace(share, head="")
        found = plan_rings(model, there, share, len(numbers), links, heads)
        return found[numbers.index(self.number) if self.number in numbers else 0]

    def _heads(self, numbers: Sequence[int], own: str, there: set[str]) -> list[str]:
        """Return who has to be the head of each of these rings, "" where any node may."""
        found = {self.number: own, **{n: h for n, h in self.heads.items() if h in there}}
        for number in numbers:
            best = self.best.get(number, "")
            if number not in found and best in there and best not in found.values():
                found[number] = best
        return [found.get(number, "") for number in numbers]


def room_for(number: int, here: Iterable[RingHere]) -> RingHere | None:
    """Return the ring that keeps ring `number` from a node where these are; None if none does.

    A head without a plan makes room for a ring of a lower number.
    """
    for ring in here:
        waits = ring.head and not ring.nodes
        if ring.number != number and not (waits and number < ring.number):
            return ring
    return None


def refused(name: str, node: str, ring: RingHere) -> NotRunning:
    """Return the error of a node that has part in another ring of the deployment."""
    return NotRunning(
        f"{node} has part in ring {ring.number} of {name}", hint="Plan anew, without it."
    )
