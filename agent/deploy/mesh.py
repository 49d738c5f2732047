"""What deployments need of the daemon: who is there, and how to speak to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agent.deploy.heads import Head
from agent.deploy.messages import Answer, Request
from agent.identity.keys import NodeId
from agent.membership.store import Member


class Mesh(Protocol):
    """The mesh as this node sees it."""

    def members(self, now: float) -> Sequence[Member]:
        """Return all valid members at `now` (unix seconds), there or not, this node too."""

    def live_workers(self, now: float) -> Sequence[Member]:
        """Return the workers that are there, this node too if it is one."""

    def draining(self) -> frozenset[NodeId]:
        """Return the members that are to run nothing, this node too if it is."""

    def find(self, node: NodeId) -> Member | None:
        """Return a member, valid or not."""

    async def ask(self, node: NodeId, request: Request, timeout_s: float) -> Answer:
        """Ask another member; raises what it raised, or PeerError when it does not answer."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Tell all members; raises NotRunning when the control plane is down."""

    async def announce_heads(self, heads: Sequence[Head]) -> None:
        """Tell the mesh which heads answer here; an empty list takes everything back."""
