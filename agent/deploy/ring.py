"""One deployment whose head is this node: its wish, and how far it is.

For `rings.py`, which knows its phases.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

from agent.deploy.build import Build
from agent.deploy.carried import Carried, Losses
from agent.deploy.heads import Head
from agent.deploy.messages import LINKS_MAX, RingHere
from agent.deploy.ringkey import key_of
from agent.deploy.wish import Wish
from agent.errors import CoveyError
from agent.identity.keys import NodeId
from agent.ownership.lease import Token
from agent.ownership.owner import Phase, Report
from agent.placement.moving import Moving
from agent.placement.results import Plan

_REPORTED = {"ready": Phase.READY, "failed": Phase.FAILED}
_BROKEN = ("ending", "waiting", "draining", "moving")


def ring_id(head: NodeId, key: str) -> str:
    """Return what stages call the ring with this head and key: 16 bytes in hex."""
    return hashlib.sha256(head.ed25519 + key.encode()).hexdigest()[:32]


@dataclass
class Deployment:
    """A wish and how far it is.

    `possible`: it was once (it ran, or was stored), so whatever is wrong now may pass. `held` are
    the nodes of the last epoch that answered, `answers` says whether the present one does. `stays`
    says why it does not leave nodes that are draining, `moves` why it moves when it does, `planned`
    where to if that is decided. `gain` says whether a better ring is known, `moving` judges it,
    `moved` says what it moved for last.
    `ending`: nothing brings it back. `told` is its head as all were told of it last. `number` says
    which of the wish's rings it is.
    """

    wish: Wish
    token: Token
    ring: str
    phase: str = "planning"
    progress: str = "planning"
    error: CoveyError | None = None
    epoch: int = 0
    revision: int = 0
    build: Build | None = None
    task: asyncio.Task[None] | None = None
    drain: asyncio.Task[None] | None = None
    possible: bool = False
    again: asyncio.Event = field(default_factory=asyncio.Event)
    carried: Carried | None = None
    losses: Losses = field(default_factory=Losses)
    regain: asyncio.Task[None] | None = None
    leave: asyncio.Task[None] | None = None
    stays: str = ""
    moves: str = ""
    planned: Plan | None = None
    gain: str = ""
    moved: str = ""
    moving: Moving = field(default_factory=Moving)
    held: frozenset[NodeId] = frozenset()
    answers: bool = False
    ending: bool = False
    told: Head | None = None
    number: int = 1

    @property
    def key(self) -> str:
        """What it is called among all rings."""
        return key_of(self.wish.name, self.number)

    @property
    def here(self) -> RingHere:
        """What this node tells of it to heads of the other rings of its deployment."""
        nodes = self.nodes
        if not nodes and (self.carried is not None or (self.build and self.build.carries)):
            nodes = self.held  # answers wait, and it is planned again
        return RingHere(self.number, head=True, nodes=tuple(sorted(map(str, nodes)))[:LINKS_MAX])

    @property
    def report(self) -> Report:
        """How it is, for its owner."""
        waiting = Phase.WAITING if self.phase in _BROKEN else Phase.BUILDING
        return Report(_REPORTED.get(self.phase, waiting), self.revision)

    @property
    def plan(self) -> Plan | None:
        """The plan of its present or last epoch, if it got so far."""
        return self.build.plan if self.build is not None else None

    @property
    def nodes(self) -> frozenset[NodeId]:
        """The nodes of that plan."""
        plan = self.plan
        return frozenset(NodeId.parse(s.node) for s in plan.stages) if plan else frozenset()

    def lacks(self, node: NodeId) -> bool:
        """Say whether a node was in the broken ring, or may be what no ring could be made for."""
        return self.plan is None or node in self.nodes

    def names_in(self, nodes: Collection[str]) -> tuple[str, ...]:
        """Return the names of those of `nodes` (ids) that have stages of it."""
        plan = self.plan
        stages = plan.stages if plan else ()
        return tuple(dict.fromkeys(stage.name for stage in stages if stage.node in nodes))
