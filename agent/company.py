"""The mesh as deployments and the gateway need it: who works, who answers, where the heads are.

A thin view over membership, presence, WireGuard's neighbours, discovery and the control plane; it
keeps nothing but the heads that it found. Made by the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from agent import endpoint
from agent.control import ControlPlane
from agent.deploy import heads, messages
from agent.deploy.heads import Head
from agent.discovery.node import Discovery
from agent.errors import MembershipError, PeerError
from agent.identity.keys import NodeId
from agent.membership.store import Member, Membership
from agent.models import messages as model_messages
from agent.neighbours import Neighbours

_log = logging.getLogger(__name__)

# How often discovery is asked for heads. A node that has a new one says so by gossip, after which
# all look; this is for what was missed.
_HEADS_INTERVAL_S = 60.0
# A head that died without a word is believed for so long at most.
_HEAD_TTL_S = 30.0
# A newcomer's first connections go over the overlay, which takes a moment to come up.
_OVERLAY_FIRST_S = 5.0


class Company:
    """The other members, as whoever works with them sees them."""

    def __init__(
        self, membership: Membership, neighbours: Neighbours, discovery: Discovery,
        control: ControlPlane, control_port: int, alive: Callable[[], Sequence[NodeId]],
        there: Callable[[], Sequence[NodeId]], draining: Callable[[], frozenset[NodeId]],
        tell: Callable[[], None],
    ) -> None:  # fmt: skip
        """`alive` returns the other members that are not gone as far as is known, `there` those
        that have shown it, `draining` the members that are to run nothing, this one too; `tell`
        says that models changed.
        """
        self._draining = draining
        self._membership = membership
        self._neighbours = neighbours
        self._discovery = discovery
        self._control = control
        self._port = control_port
        self._alive = alive
        self._there = there
        self._first_seen: dict[NodeId, float] = {}
        self._look = asyncio.Event()
        self._tell = tell
        self._heads: list[dict[str, Any]] = []

    def members(self, now: float) -> Sequence[Member]:
        """Return all valid members at `now` (unix seconds), there or not, this node too."""
        return self._membership.live_members(now)

    def live_workers(self, now: float) -> Sequence[Member]:
        """Return the workers that have shown that they are there, this node too if it is one.

        After a start, who is off counts as alive for minutes; nobody may wait for it that long.
        """
        there = {*self._there(), self._membership.key.id}
        return [
            member
            for member in self._membership.live_members(now)
            if "worker" in member.certificate.roles and member.node_id in there
        ]

    def draining(self) -> frozenset[NodeId]:
        """Return the members that are to run nothing, this node too if it is."""
        return self._draining()

    def find(self, node: NodeId) -> Member | None:
        """Return a member, valid or not."""
        return self._membership.find(node)

    def name_of(self, node: NodeId) -> str:
        """Return a member's name; the end of its id for a stranger."""
        member = self._membership.find(node)
        return member.certificate.name if member else f"…{node.short}"

    def overlay_address(self, node: NodeId) -> str | None:
        """Return a member's overlay IPv6 address while WireGuard reaches it."""
        member = self._membership.find(node)
        if member is None or not self._neighbours.connected(node):
            return None
        return str(member.certificate.ipv6)

    def control_addresses(self, node: NodeId) -> list[str]:
        """Return where to reach a member's control plane now: HOST:PORT, best first.

        Over the overlay alone where that is up: then the underlay sees WireGuard and nothing else.
        """
        member = self._membership.find(node)
        if member is None:
            return []
        over = [endpoint.join(str(member.certificate.ipv6), self._port)]
        if self._neighbours.connected(node):
            return over
        return [*member.control_addresses, *over]

    def link_addresses(self, node: NodeId) -> list[str]:
        """Return where to keep a link to a member: as above, but a new one's overlay is awaited."""
        now = time.monotonic()
        seen = self._first_seen.setdefault(node, now)
        if not self._neighbours.connected(node) and now - seen < _OVERLAY_FIRST_S:
            return []
        return self.control_addresses(node)

    @property
    def heads(self) -> list[dict[str, Any]]:
        """The heads that discovery knows, but those of members that are gone."""
        there = {str(node) for node in (*self._alive(), self._membership.key.id)}
        return [head for head in self._heads if head["node"] in there]

    def head_nodes(self) -> set[NodeId]:
        """Return the nodes where heads answer."""
        return {NodeId.parse(head["node"]) for head in self.heads}

    async def ask(
        self, node: NodeId, request: messages.Request, timeout_s: float
    ) -> messages.Answer:
        """Send a deployment message to another member and return its answer."""
        if not self._membership.is_member(node, time.time()):
            raise MembershipError(f"{node} is no member of this mesh")
        answer = await self._control.request(
            node, self.control_addresses(node), messages.PROTOCOL,
            messages.encode(request), timeout_s=timeout_s,
        )  # fmt: skip
        try:
            return messages.decode_answer(answer)
        except PeerError as error:
            raise PeerError(f"node …{node.short} answered nonsense: {error.message}") from None

    def others(self) -> Sequence[NodeId]:
        """Return the other members that have shown that they are there."""
        there = set(self._there()) - {self._membership.key.id}
        live = self._membership.live_members(time.time())
        return [member.node_id for member in live if member.node_id in there]

    def models_host(self, node: NodeId) -> str | None:
        """Return the overlay address where a member serves models; None for a stranger."""
        member = self._membership.find(node)
        return str(member.certificate.ipv6) if member is not None else None

    async def ask_models(self, node: NodeId, timeout_s: float) -> model_messages.Models:
        """Ask another member which models it has. Raises CoveyError."""
        answer = await self._control.request(
            node, self.control_addresses(node), model_messages.PROTOCOL,
            model_messages.encode(model_messages.AskModels()), timeout_s=timeout_s,
        )  # fmt: skip
        return model_messages.decode_answer(answer)

    async def publish(self, topic: str, payload: bytes) -> None:
        """Tell all members; raises NotRunning when the control plane is down."""
        await self._control.publish(topic, payload)

    async def announce_heads(self, found: Sequence[Head]) -> None:
        """Tell the mesh which heads answer here."""
        if found:
            await self._discovery.announce(heads.SERVICE, heads.encode(found), _HEAD_TTL_S)
        else:
            await self._discovery.withdraw(heads.SERVICE)
        self._tell()
        self.look_soon()

    def look_soon(self) -> None:
        """Look for heads now: somebody's models changed."""
        self._look.set()

    async def follow_heads(self) -> None:
        """Keep `heads` up to date; runs until it is cancelled."""
        while True:
            await self._find_heads()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEADS_INTERVAL_S):
                    await self._look.wait()
            self._look.clear()

    async def _find_heads(self) -> None:
        found = []
        for record in await self._discovery.providers(heads.SERVICE):
            member = self._membership.find(record.id)
            if member is None:
                continue
            try:
                announced = heads.decode(record.payload)
            except PeerError as error:
                _log.warning("node=%s %s", record.id, error.message)
                continue
            address = str(member.certificate.ipv6)
            found += [
                {"model": head.model, "context": head.context, "ring": head.ring,
                 "url": f"http://{endpoint.join(address, head.port)}",
                 "node": str(record.id), "name": member.certificate.name}
                for head in announced
            ]  # fmt: skip
        self._heads = found
