"""Rings that lack nodes get them back: who came, and who could be in one and is not.

For `rings.py`. A node is asked what it can hold before an answering ring is built again for it.
"""

from __future__ import annotations

import asyncio
import logging
import time

from agent.deploy.beside import room_for
from agent.deploy.mesh import Mesh
from agent.deploy.messages import AskFacts, Facts
from agent.deploy.ring import Deployment
from agent.errors import CoveyError
from agent.identity.keys import NodeId

_log = logging.getLogger(__name__)

# How often a ring that lacks nodes looks for them.
LOOK_INTERVAL_S = 10.0
# A node that is there again is asked so often, with such pauses, until it says what it can hold.
_TRIES, _PAUSE_S, _TIMEOUT_S = 6, 2.0, 3.0


class Regain:
    """When each node came last (monotonic seconds), and the search for more."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._came: dict[NodeId, float] = {}

    def came(self, node: NodeId) -> None:
        """Note that a node is there (again)."""
        self._came[node] = time.monotonic()

    def at(self, node: NodeId) -> float:
        """Return when a node came; 0 where it was there before this agent."""
        return self._came.get(node, 0.0)

    def since(self, moment: float) -> list[NodeId]:
        """Return who came after a moment."""
        return [node for node, at in self._came.items() if at > moment]

    def returned(self, deployment: Deployment, began: float) -> bool:
        """Say whether a node of the broken ring came back since; then it is not the ring's fault.

        A stage that is gone may be missed only when its node is there again and says so.
        """
        return any(deployment.lacks(node) for node in self.since(began))

    def begin(self, deployment: Deployment, node: NodeId) -> None:
        """Have a ring that lacks nodes use this one, if it is not in it."""
        missing = deployment.build.missing if deployment.build is not None else 0
        idle = deployment.regain is None or deployment.regain.done()
        if deployment.phase == "ready" and missing and idle and node not in deployment.nodes:
            deployment.regain = asyncio.create_task(
                self._ask(deployment, node), name=f"regain {deployment.wish.name}"
            )

    def left_out(self, deployment: Deployment) -> frozenset[NodeId]:
        """Return who lost stages of this ring of late, again and again."""
        return deployment.losses.repeated(time.monotonic(), self.at)

    async def look(self, deployment: Deployment) -> None:
        """While a ring lacks nodes, look now and then who could be in it and is not.

        For who was left out, and for whoever came without a word.
        """
        while deployment.build is not None and deployment.build.missing:
            await asyncio.sleep(LOOK_INTERVAL_S)
            not_wanted = deployment.nodes | self.left_out(deployment)
            for worker in self._mesh.live_workers(time.time()):
                if worker.node_id not in not_wanted:
                    await self._ask(deployment, worker.node_id)

    async def _ask(self, deployment: Deployment, node: NodeId) -> None:
        """Have a ring that lacks nodes built again once this one says that it can hold a stage."""
        for _ in range(_TRIES):
            try:
                several = deployment.wish.name if deployment.wish.rings > 1 else ""
                facts = await self._mesh.ask(node, AskFacts("", several), _TIMEOUT_S)
            except CoveyError as error:
                _log.info("deployment name=%s node=%s is not ready yet: %s", deployment.wish.name,
                          node, error.line())  # fmt: skip
                await asyncio.sleep(_PAUSE_S)
            else:
                if not isinstance(facts, Facts) or not (
                    facts.draining or room_for(deployment.number, facts.rings)
                ):
                    deployment.moves = "more nodes are there; its answers go on over them"
                    deployment.again.set()
                return
