"""A mesh of Authority services in one process: function calls for a network, and one clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from agent.authority import Authority
from agent.authority.wishes import InviteWish
from agent.errors import NotRunning, PeerError
from agent.identity.keys import NodeId
from agent.membership import join
from agent.membership.join import JoinReply, JoinRequest
from agent.membership.store import Membership, StateDir
from agent.membership.ticket import Ticket

NOW = 1_800_000_000.0
DAY_S = 86400
LIMIT_S = 5.0
Handler = Callable[[NodeId, bytes], Awaitable[bytes]]
NewsHandler = Callable[[NodeId, bytes], Awaitable[bool]]


class FakeControl:
    """A control plane whose network is a dictionary; its gate is the node's own membership."""

    def __init__(self, net: Net, membership: Membership) -> None:
        self.net = net
        self.membership = membership
        self.up = True
        self.asked: list[tuple[NodeId, str]] = []
        self.refused_news: list[NodeId] = []
        self._handlers: dict[str, tuple[Handler, bool]] = {}
        self._topics: dict[str, NewsHandler] = {}

    def serve(self, protocol: str, handler: Handler, *, strangers: bool = False) -> None:
        self._handlers[protocol] = (handler, strangers)

    def subscribe(self, topic: str, handler: NewsHandler) -> None:
        self._topics[topic] = handler

    async def request(
        self,
        peer: NodeId | None,
        addresses: Sequence[str],
        protocol: str,
        payload: bytes,
        *,
        timeout_s: float,
    ) -> bytes:
        assert peer is not None and timeout_s > 0
        self.asked.append((peer, protocol))
        other = self.net.reach(self, peer)
        if other is None:
            raise PeerError("the node cannot be reached")
        return await other.answer(self.membership.key.id, protocol, payload)

    async def answer(self, caller: NodeId, protocol: str, payload: bytes) -> bytes:
        handler, strangers = self._handlers[protocol]
        if not strangers and not self.membership.is_member(caller, self.net.now):
            raise PeerError("the node cannot be reached")
        return await handler(caller, payload)

    async def publish(self, topic: str, payload: bytes) -> None:
        if not self.up:
            raise NotRunning("the control plane is not running")
        assert len(payload) <= 64 * 1024
        author = self.membership.key.id
        for other in list(self.net.controls.values()):
            if other is self or self.net.reach(self, other.membership.key.id) is None:
                continue
            if not other.membership.is_member(author, self.net.now):
                continue
            if not await other._topics[topic](author, payload):
                other.refused_news.append(author)


class Node:
    """One member: its state directory, membership and authority, and what its daemon was told."""

    def __init__(self, net: Net, state: StateDir, membership: Membership, offset_s: float) -> None:
        self.state = state
        self.membership = membership
        self.key = membership.key
        self.id = membership.key.id
        self.offset_s = offset_s
        self.changes = 0
        self.control = FakeControl(net, membership)
        self.authority = Authority(
            membership,
            self.control,
            addresses_of=lambda node: ["192.0.2.1:4001"],
            on_change=self._changed,
            clock=lambda: net.now + offset_s,
            random=Random(1),
        )
        self.authority.begin()
        net.controls[self.id] = self.control
        self._net = net

    async def _changed(self) -> None:
        self.changes += 1

    @property
    def name(self) -> str:
        return self.membership.certificate.name

    def sees(self, other: Node) -> str:
        return self.membership.state(other.id, self._net.now)

    def name_of(self, other: Node) -> str:
        member = self.membership.find(other.id)
        assert member is not None
        return member.certificate.name

    async def tick(self) -> None:
        """What the upkeep does when it looks at what is due."""
        await self.authority._upkeep.tick(self._net.now + self.offset_s)

    async def sync(self, other: Node) -> None:
        """Ask another for what is missing here, and for the keys."""
        await self.authority._upkeep.sync(other.id)
        if self.membership.key_ring.pending:
            await self.authority._upkeep.fetch_keys(other.id)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.authority.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


class Net:
    """The mesh, its clock, and who cannot be reached."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOW
        self.controls: dict[NodeId, FakeControl] = {}
        self.nodes: list[Node] = []
        self.off: set[NodeId] = set()
        self._states = contextlib.ExitStack()

    def reach(self, caller: FakeControl, peer: NodeId) -> FakeControl | None:
        if peer in self.off or caller.membership.key.id in self.off or not caller.up:
            return None
        other = self.controls.get(peer)
        return other if other is not None and other.up else None

    def state(self, name: str) -> StateDir:
        return self._states.enter_context(StateDir(self.folder / name).lock())

    def found(self, name: str = "box") -> Node:
        state = self.state(f"founder-{len(self.nodes)}")
        return self._add(state, state.create_mesh("home", name, self.now), 0.0)

    def _add(self, state: StateDir, membership: Membership, offset_s: float) -> Node:
        node = Node(self, state, membership, offset_s)
        self.nodes.append(node)
        return node

    async def ask_to_join(self, at: Node, ticket: Ticket, name: str, state: StateDir) -> JoinReply:
        """What a newcomer does: its request reaches the member `at`."""
        request = JoinRequest.to(ticket, name, state.node_key())
        raw = await at.control.answer(request.node_id, join.PROTOCOL, request.encode())
        return JoinReply.decode(raw)

    async def join(
        self,
        issuer: Node,
        name: str = "pi",
        *,
        at: Node | None = None,
        roles: tuple[str, ...] = ("worker",),
        offset_s: float = 0.0,
    ) -> Node:
        """Invite at an issuer, join through `at`."""
        text = (await issuer.authority.invite(InviteWish(roles=roles))).encode()
        ticket, state = Ticket.parse(text), self.state(f"{name}-{len(self.nodes)}")
        reply = await self.ask_to_join(at or issuer, ticket, name, state)
        return self._add(state, state.accept(ticket, reply, self.now), offset_s)

    def restart(self, node: Node) -> Node:
        """The same node from its disk."""
        membership = node.state.membership()
        assert membership is not None
        self.nodes.remove(node)
        return self._add(node.state, membership, node.offset_s)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for something that other tasks bring about."""
        async with asyncio.timeout(LIMIT_S):
            while not true():  # noqa: ASYNC110 - what is waited for has no event of its own
                await asyncio.sleep(0.005)

    def close(self) -> None:
        self._states.close()


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    made = Net(tmp_path)
    yield made
    made.close()
