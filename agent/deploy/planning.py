"""Find the nodes of one epoch of a ring, and have placement cut the model over them.

Used by `build.py`. It asks the other workers what they can hold; who does not answer is left out,
and so is who is draining, unless the ring is there already and cannot do without it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from agent.deploy.mesh import Mesh
from agent.deploy.messages import AskFacts, Facts
from agent.deploy.wish import Wish
from agent.errors import CoveyError, ModelError, PeerError
from agent.identity.keys import NodeId
from agent.placement.plan import Candidate, ModelSizes, Plan, plan

_log = logging.getLogger(__name__)

_FACTS_TIMEOUT_S = 3.0
# While answers wait, a node that says nothing for so long is taken for lost.
_FACTS_QUICK_S = 0.7
# While fewer nodes than wished for are connected (the agent just started), planning waits so long.
_NODES_TIMEOUT_S = 20.0
_POLL_S = 0.5

Progress = Callable[[str, str], None]
"""Called with the phase and a sentence for people."""


class Planning:
    """The plan of one epoch.

    `waits` False: answers wait, so nobody else does. Nodes `without` which it can be are left out;
    `fewer`: where not as many nodes are there as were wished for, the plan is over those, and
    `missing` says how many are not. `kept` are the nodes of the ring as it was, which `ring` names:
    its stages there make room.
    """

    def __init__(
        self, wish: Wish, own: Candidate, mesh: Mesh, progress: Progress, *, waits: bool,
        without: frozenset[NodeId], fewer: bool, kept: frozenset[NodeId] = frozenset(),
        ring: str = "",
    ) -> None:  # fmt: skip
        self._wish = wish
        self._own = own
        self._mesh = mesh
        self._progress = progress
        self._waits = waits
        self._without = without
        self._fewer = fewer
        self._kept = kept
        self._ring = ring
        self._draining: dict[str, str] = {}  # names by node
        self.missing = 0

    async def plan(self, sizes: ModelSizes) -> Plan:
        """Return the plan; raises what `agent.placement.plan.plan` raises."""
        others = [] if sizes.uncut else await self._candidates()
        staying = [other for other in others if other.node not in self._draining]
        chosen = [other for other in staying if NodeId.parse(other.node) not in self._without]
        held = [other for other in others if NodeId.parse(other.node) in self._kept]
        for candidates in (chosen, staying):
            try:
                return self._over(sizes, candidates)
            except (PeerError, ModelError):
                if candidates is staying and all(other in staying for other in held):
                    raise
        return self._over(sizes, [*staying, *(other for other in held if other not in staying)])

    @property
    def absent(self) -> tuple[str, ...]:
        """What to tell people of nodes that are missing, or are not to be in it."""
        said = [f"{name} is draining" for name in sorted(self._draining.values())]
        if self.missing:
            said.append(f"{self._wish.nodes} nodes were asked for, and {self.missing} of them are"
                        " not there; it is built again once they are")  # fmt: skip
        return tuple(said)

    def _over(self, sizes: ModelSizes, others: Sequence[Candidate]) -> Plan:
        wished, there = self._wish.nodes, 1 + len(others)
        self.missing = 0
        if wished is not None and self._fewer and wished > there:
            self.missing, wished = wished - there, there
        return plan(sizes, self._own, others, wished)

    async def _candidates(self) -> list[Candidate]:
        """Ask the other workers what they can hold; wait a little for as many as are wished."""
        wished = (self._wish.nodes or 1) - 1 if self._waits else 0
        deadline = asyncio.get_running_loop().time() + _NODES_TIMEOUT_S
        while True:
            workers = [
                worker
                for worker in self._mesh.live_workers(time.time())
                if str(worker.node_id) != self._own.node
            ]
            asks = (self._facts(worker.node_id) for worker in workers)
            found, self._draining = [], {}
            for worker, facts in zip(workers, await asyncio.gather(*asks), strict=True):
                if facts is None:
                    continue
                node, name = str(worker.node_id), worker.certificate.name
                found.append(Candidate(node, name, facts.free_bytes))
                if facts.draining:
                    self._draining[node] = name
            # Who is draining will not be there soon: what can do with fewer does not wait for it.
            counted = len(found) - (0 if self._fewer else len(self._draining))
            if counted >= wished or asyncio.get_running_loop().time() > deadline:
                return found
            self._progress("planning", f"waiting for {wished - counted} more nodes")
            await asyncio.sleep(_POLL_S)

    async def _facts(self, node: NodeId) -> Facts | None:
        timeout_s = _FACTS_TIMEOUT_S if self._waits else _FACTS_QUICK_S
        try:
            answer = await self._mesh.ask(node, AskFacts(self._ring), timeout_s)
        except CoveyError as error:
            _log.info("node %s is left out of the plan: %s", node, error.line())
            return None
        return answer if isinstance(answer, Facts) else None
