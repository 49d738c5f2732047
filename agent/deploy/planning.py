"""Find the nodes of one ring, what is known of them and their links, and have placement choose.

Used by `build.py`, and for a look without building. It asks the other workers what they can hold;
who does not answer is left out, and so is who is draining, unless the ring is there already and
cannot do without it. Links on which a plan rests are measured first where there is time
for it, and the plan made anew with what came of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from agent.deploy.beside import Others, shared
from agent.deploy.facts import facts_of
from agent.deploy.links import MEASURE_LIMIT_S, from_facts
from agent.deploy.mesh import Mesh
from agent.deploy.messages import Facts, LinkFacts, MeasureLinks, RingHere
from agent.deploy.wish import Wish
from agent.engine.pace import BATCHES
from agent.errors import CoveyError, ModelError, PeerError, UsageError
from agent.identity.keys import NodeId
from agent.placement.inputs import (
    ROW_S,
    STAGE_S,
    UNMEASURED,
    Aims,
    Link,
    Links,
    Model,
    Node,
    Objective,
)
from agent.placement.plan import plan
from agent.placement.results import Plan
from agent.placement.rings import ways

_log = logging.getLogger(__name__)

_FACTS_TIMEOUT_S = 3.0
# While answers wait, a node that says nothing for so long is taken for lost.
_FACTS_QUICK_S = 0.7
# A node that lives is as quick as the others, and one whose engine alone died is the best to take.
_DOUBTED_S = 0.2
# While fewer nodes than wished for are connected (the agent just started), planning waits so long.
_NODES_TIMEOUT_S = 20.0
_POLL_S = 0.5
# A plan that rests on guesses is made again with what was measured, which may show another.
_ROUNDS = 3
# Who follows a head, and who follows that one: two nodes may die at once.
_HEADS_MOST = 3
# For how many answers at once a ring is to be good. A head serves 16; a home has a few.
_STREAMS: dict[Objective, int] = {"latency": 1, "auto": 4, "throughput": 16}

Progress = Callable[[str, str], None]
"""Called with the phase and a sentence for people."""

Weigh = Callable[[Model, Sequence[Node], Aims, Links], Plan]
"""Chooses a plan, as `agent.placement.plan.plan` does."""

Measure = Callable[[Sequence[NodeId]], Awaitable[Sequence[LinkFacts]]]
"""Measures this node's links to others where that is due, and returns all that are known."""


def node_of(node: NodeId, name: str, facts: Facts, tags: Iterable[str] = ()) -> Node:
    """Return a node as placement takes it; what was not measured is None there."""
    return Node(
        str(node), name, facts.free_bytes, frozenset(tags),
        decode_bytes_s=facts.decode_bytes_s or None, prefill_flop_s=facts.prefill_flop_s or None,
        batches=facts.batches if len(facts.batches) == len(BATCHES) else (),
        attended_s=facts.attended_s or None,
        stage_s=STAGE_S / facts.cpu_share, row_s=ROW_S / facts.cpu_share,
    )  # fmt: skip


@dataclass(frozen=True)
class Own:
    """This node: as placement takes it, its links, and what measures them (None: nothing does).

    `doubted` are members that may have died a moment ago, or lost a stage.
    """

    node: Node
    links: Sequence[LinkFacts] = ()
    measure: Measure | None = None
    doubted: frozenset[NodeId] = frozenset()


@dataclass
class _Found:
    """The nodes that answered, this one first, and the links that each told of."""

    nodes: list[Node]
    links: dict[tuple[str, str], Link] = field(default_factory=dict)

    def told(self, node: str, links: Iterable[LinkFacts]) -> None:
        """Take in the links from a node."""
        for other, link in from_facts(links).items():
            bytes_s = UNMEASURED.bytes_s if link.bytes_s is None else link.bytes_s
            self.links[node, other] = Link(link.rtt_s, link.jitter_s, link.loss, bytes_s)

    def guessed(self, node: str, other: str) -> bool:
        """Say whether nobody knows what the link between them carries."""
        link = self.links.get((node, other))
        return link is None or link.bytes_s == UNMEASURED.bytes_s


class Planning:
    """The plan of one ring.

    `waits` False: answers wait, so nobody else does. Nodes `without` which it can be are left out;
    `fewer`: where not as many nodes are there as were wished for, the plan is over those, and
    `missing` says how many are not. `kept` are the nodes of the ring as it was, which `ring` names:
    its stages there make room. Whom `own` doubts is hardly waited for.
    `number`: which of the wish's rings it is; it keeps off the others' nodes (`beside.py`). The
    head is this node, or with `heads` one of those.
    """

    def __init__(
        self, wish: Wish, own: Own, mesh: Mesh, progress: Progress, *, waits: bool = True,
        without: frozenset[NodeId] = frozenset(), fewer: bool = False,
        kept: frozenset[NodeId] = frozenset(), ring: str = "",
        heads: frozenset[NodeId] | None = None, number: int = 1, weigh: Weigh = plan,
    ) -> None:  # fmt: skip
        self._number = number
        self._others = self._none_told(wish)
        self._wish = wish
        self._own = own
        self._mesh = mesh
        self._progress = progress
        self._waits = waits
        self._without = without
        self._fewer = fewer
        self._kept = kept
        self._ring = ring
        self._elsewhere = heads is not None
        self._heads = frozenset({own.node.node} if heads is None else map(str, heads))
        self._weigh = weigh
        self._draining: dict[str, str] = {}  # names by node
        self._with_others: dict[int, list[str]] = {}  # names by ring
        self._rounds = 0  # of measuring
        self.missing = 0

    async def plan(self, model: Model, context: int) -> Plan:
        """Return the plan; raises what `agent.placement.plan.plan` raises."""
        found = _Found([self._own.node])
        found.told(self._own.node.node, self._own.links)
        if not model.uncut or self._elsewhere:
            # While answers wait, nobody waits for nodes.
            wished = max(self._wish.nodes or 1, self._wish.least) if self._waits else 1
            await self._ask(found, wished)
            if self._elsewhere:
                self._drop_idle(found)
        chosen = await self._chosen(model, context, found)
        while not model.in_line and await self._measured([chosen], found):
            chosen = await self._chosen(model, context, found)
        return chosen

    async def ways(self, model: Model, context: int, rings: int | None) -> list[list[Plan]]:
        """Return how so many rings (None: the best number) would run, and other numbers of them.

        Where no `heads` were given any node may be one, and this one is the first ring's; of a file
        that it alone has, it is the only one. Raises what `agent.placement.rings.ways` raises.
        """
        wish, own = self._wish, self._own.node
        found = _Found([own])
        found.told(own.node, self._own.links)
        await self._ask(found, (rings or 1) * max(wish.nodes or 1, wish.least))
        self._drop_idle(found)
        anywhere = not self._elsewhere and wish.source_id is None
        nodes = [
            replace(node, head_allowed=anywhere or node.node in self._heads)
            for node in found.nodes
        ]  # fmt: skip
        here = own in found.nodes and own.node not in self._draining
        first = own.node if here and not self._elsewhere else ""
        aims = shared(Aims(
            wish.objective, context=context, nodes=wish.nodes, least=wish.least, head=first,
            only=frozenset(wish.only), never=frozenset(wish.never),
            without=frozenset(self._draining),
        ), rings or 1)  # fmt: skip
        while True:
            made = await asyncio.to_thread(ways, model, nodes, aims, Links(found.links), rings)
            if not await self._measured(made[0], found):
                return made

    async def _measured(self, plans: Iterable[Plan], found: _Found) -> bool:
        """Measure the links on which plans rest; return whether they should be made anew."""
        unknown = [hop for plan in plans for hop in self._unknown(plan, found)]
        if not unknown or not self._waits or self._rounds == _ROUNDS:
            return False
        self._rounds += 1
        self._progress("planning", "measuring the links between the nodes")
        return await self._measure(unknown, found)

    async def succession(
        self, model: Model, context: int, holders: Sequence[frozenset[NodeId]],
        here: Sequence[RingHere] = (),
    ) -> list[NodeId]:  # fmt: skip
        """Return who had best be the head, then who had if that one were lost, and so on.

        `holders` has for each of the model's files who has it. A node that has all comes first;
        where none of those can be it, any may that can fetch what it lacks from others. `here` are
        the deployment's rings that have part of this node, which nobody is asked about.
        """
        found = _Found([self._own.node])
        found.told(self._own.node.node, self._own.links)
        await self._ask(found, 1)
        self._others.told(self._own.node.node, here)
        self._drop_idle(found)
        leaving = {*self._draining, *map(str, self._mesh.draining())}
        leaving |= self._others.not_ours
        found.nodes = [node for node in found.nodes if node.node not in leaving]
        order: list[str] = []
        while len(order) < _HEADS_MOST:
            left = [frozenset(map(str, nodes)).difference(order) for nodes in holders]
            there = frozenset(node.node for node in found.nodes).difference(order)
            head = ""
            for heads in (there.intersection(*left), there) if all(left) else ():
                with contextlib.suppress(PeerError, ModelError, UsageError):
                    chosen = await self._over(model, context, found, frozenset(order), heads)
                    head = chosen.stages[0].node
                    break
            if not head:
                break
            order.append(head)
        if not order:  # the one with most room says what is wrong, as a head
            able = frozenset[NodeId].intersection(*holders)
            roomy = sorted(
                found.nodes,
                key=lambda node: (NodeId.parse(node.node) not in able, -node.free_bytes),
            )
            order = [node.node for node in roomy[:1]]
        return [NodeId.parse(node) for node in order]

    @property
    def absent(self) -> tuple[str, ...]:
        """What to tell people of nodes that are missing, or are not to be in it."""
        said = [f"{name} is draining" for name in sorted(self._draining.values())]
        said += [
            f"{names} {'is' if len(nodes) == 1 else 'are'} in ring {number}"
            for number, nodes in sorted(self._with_others.items())
            for names in [" and ".join(sorted(nodes))]
        ]
        if self.missing:
            said.append(f"{self._wish.nodes} nodes were asked for, and {self.missing} of them are"
                        " not there; it is built again once they are")  # fmt: skip
        return tuple(said)

    async def _chosen(self, model: Model, context: int, found: _Found) -> Plan:
        """Plan without those that are to be left out if it can be, and over fewer if need be."""
        there = frozenset(node.node for node in found.nodes)
        draining = there.intersection(self._draining)
        lost = there & {str(node) for node in self._without}
        kept = {str(node) for node in self._kept}
        tries = list(dict.fromkeys((draining | lost, draining, draining - kept)))
        for left_out in tries[:-1]:
            with contextlib.suppress(PeerError, ModelError):
                return await self._over(model, context, found, left_out, self._heads)
        return await self._over(model, context, found, tries[-1], self._heads)

    async def _over(
        self, model: Model, context: int, found: _Found, left_out: frozenset[str],
        heads: frozenset[str],
    ) -> Plan:  # fmt: skip
        wish, wished, others = self._wish, self._wish.nodes, self._others
        there = sum(node.node not in left_out | others.not_ours for node in found.nodes)
        self.missing = 0
        if wished is not None and self._fewer and wished > there:
            self.missing, wished = wished - there, there
        aims = Aims(
            wish.objective, context=context, streams=_STREAMS[wish.objective], nodes=wished,
            least=min(wish.least, there) if self._fewer else wish.least,
            head=next(iter(heads)) if len(heads) == 1 else "",
            only=frozenset(wish.only), never=frozenset(wish.never), without=left_out,
        )  # fmt: skip
        nodes = [replace(node, head_allowed=node.node in heads) for node in found.nodes]
        # With many nodes it takes a second, in which beats and stages want to be answered.
        links = Links(found.links)
        if others.rings == 1 or model.uncut or heads is not self._heads:
            return await asyncio.to_thread(self._weigh, model, nodes, aims, links)
        try:
            # Any node may be the head of another ring.
            return await asyncio.to_thread(
                others.plan, model, found.nodes, aims, links, first=bool(self._kept)
            )
        except (PeerError, ModelError, UsageError) as error:
            said = "; ".join(line for line in self.absent if " in ring " in line)
            if not said:
                raise
            raise type(error)(f"{error.message}; {said}", hint=error.hint) from None

    async def _ask(self, found: _Found, wished: int) -> None:
        """Ask the other workers what they can hold; wait a little for as many as are wished."""
        deadline = asyncio.get_running_loop().time() + _NODES_TIMEOUT_S
        while True:
            workers = [
                worker
                for worker in self._mesh.live_workers(time.time())
                if str(worker.node_id) != self._own.node.node
            ]
            del found.nodes[1:]
            self._draining.clear()
            self._others = self._none_told(self._wish)
            told = await self._all_facts([worker.node_id for worker in workers])
            for worker in workers:
                if (facts := told.get(worker.node_id)) is not None:
                    certificate = worker.certificate
                    node = node_of(worker.node_id, certificate.name, facts, certificate.tags)
                    found.nodes.append(node)
                    found.told(node.node, facts.links)
                    self._others.told(node.node, facts.rings)
                    if facts.draining:
                        self._draining[node.node] = node.name
            self._with_others = self._names_by_ring(found.nodes)
            # Who is draining is counted here, for it is not worth waiting until it does not.
            lacking = wished - sum(n.node not in self._others.not_ours for n in found.nodes)
            if lacking <= 0 or asyncio.get_running_loop().time() > deadline:
                return
            self._progress("planning", f"waiting for {lacking} more nodes")
            await asyncio.sleep(_POLL_S)

    def _drop_idle(self, found: _Found) -> None:
        """Leave this node out if it only plans: it is no worker."""
        workers = {str(worker.node_id) for worker in self._mesh.live_workers(time.time())}
        if self._own.node.node not in workers:
            found.nodes = found.nodes[1:]

    async def _all_facts(self, nodes: Sequence[NodeId]) -> dict[NodeId, Facts | None]:
        """Ask all at once; the doubted have a moment, or as long as the others take."""
        until = asyncio.get_running_loop().time() + _DOUBTED_S
        asks = {node: asyncio.create_task(self._facts(node)) for node in nodes}
        try:
            doubted = [ask for node, ask in asks.items() if node in self._own.doubted]
            if others := [ask for ask in asks.values() if ask not in doubted]:
                await asyncio.wait(others)
            if doubted:
                left_s = until - asyncio.get_running_loop().time()
                await asyncio.wait(doubted, timeout=max(left_s, 0.0))
            return {node: ask.result() for node, ask in asks.items() if ask.done()}
        finally:
            for ask in asks.values():
                ask.cancel()

    async def _facts(self, node: NodeId) -> Facts | None:
        timeout_s = _FACTS_TIMEOUT_S if self._waits else _FACTS_QUICK_S
        several = self._wish.name if self._wish.rings > 1 else ""
        return await facts_of(self._mesh.ask, node, timeout_s, self._ring, several)

    def _none_told(self, wish: Wish) -> Others:
        best = {n: str(head) for n in range(1, wish.rings + 1) if (head := wish.head_of(n))}
        return Others(self._number, wish.rings, best)

    def _names_by_ring(self, nodes: Iterable[Node]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for node in nodes:
            if (number := self._others.planned.get(node.node)) is not None:
                found.setdefault(number, []).append(node.name)
        return found

    def _unknown(self, chosen: Plan, found: _Found) -> list[tuple[str, str]]:
        """Return the hops of a plan whose bandwidth nobody has measured."""
        stages = chosen.stages
        return [
            (one.node, other.node)
            for one, other in pairwise(stages)
            if one.node != other.node and found.guessed(one.node, other.node)
        ]

    async def _measure(self, hops: Sequence[tuple[str, str]], found: _Found) -> bool:
        """Have these measured, all at once: no two of them go to the same node.

        Returns whether anything came of it.
        """
        before = dict(found.links)

        async def one(node: str, to: NodeId) -> None:
            links: Sequence[LinkFacts] = ()
            try:
                if node != self._own.node.node:
                    request = MeasureLinks(to=(str(to),))
                    answer = await self._mesh.ask(
                        NodeId.parse(node), request, MEASURE_LIMIT_S + _FACTS_TIMEOUT_S
                    )
                    links = answer.links if isinstance(answer, Facts) else ()
                elif self._own.measure is not None:
                    links = await self._own.measure([to])
            except CoveyError as error:
                _log.info("the link from %s to %s is not measured: %s", node, to, error.line())
            found.told(node, links)

        await asyncio.gather(*(one(node, NodeId.parse(to)) for node, to in hops))
        return found.links != before
