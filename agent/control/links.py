"""Connections to peers: listen, dial, know which there are, give up. One connection is one link.

trio and libp2p, imported in the control plane's thread only. A link belongs to a peer whose
identity Noise has proved; that, and nothing from an address, is what `node.py` relies on. Who may
have one is the gate's decision (`gate.py`), which of several stays is `redial.py`'s.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from multiaddr import Multiaddr

from agent import endpoint
from agent.control import sockets
from agent.control.dialling import Dialler, proved_node
from agent.control.gate import STRANGER_IDLE_S, STRANGER_LIMIT_S, Callers, Gate
from agent.control.listening import bind
from agent.control.preamble import Doorkeeper
from agent.control.redial import Candidate, stays
from agent.control.sockets import Socket
from agent.control.streams import GOSSIP
from agent.control.swarm import HANDSHAKE_LIMIT_S, BoundedYamux, Host
from agent.control.troubles import Trouble, unreachable
from agent.identity.keys import NodeId
from agent.membership.networkkeys import NetworkKeys

log = logging.getLogger(__name__)

# Closing takes libp2p 0.3 s; with a peer that takes no bytes, this.
CLOSE_LIMIT_S = 2.0
# How often a stranger's time is looked at.
STRANGER_TICK_S = 0.5
# libp2p wants to know where a connection came in; nothing depends on it.
_ANYWHERE = Multiaddr("/ip4/0.0.0.0/tcp/0")


class Link:
    """One connection whose other end has proved its identity."""

    def __init__(self, connection: Any, tcp: Socket, node: NodeId, dialled: str) -> None:
        """`connection`: libp2p's; `dialled`: the address that we called, empty if it called us."""
        self.connection = connection
        self.tcp = tcp
        self.node = node
        self.dialled = dialled
        self.opened_at = trio.current_time()
        self.busy_at = self.opened_at
        self.member = False
        # Counted by the gate as a stranger's.
        self.admitted = False

    @property
    def outbound(self) -> bool:
        """Whether this node dialled."""
        return bool(self.dialled)

    @property
    def alive(self) -> bool:
        """Whether it takes streams, as far as is known."""
        muxed = self.connection.muxed_conn
        return not (self.connection.is_closed or muxed.event_shutting_down.is_set())

    @property
    def busy(self) -> bool:
        """Whether anything but gossip is going on."""
        streams = self.connection.get_streams()
        if any(stream.get_protocol() != GOSSIP for stream in streams):
            self.busy_at = trio.current_time()
            return True
        return False


class Links:
    """All connections of one host."""

    def __init__(self, host: Host, own: NodeId, gate: Gate, keys: NetworkKeys) -> None:
        self._swarm = host.swarm
        self._own = own
        self._gate = gate
        self._sockets: set[Socket] = set()
        self._dialler = Dialler(host, own, keys, self._sockets, self._take_out)
        self._nursery: trio.Nursery | None = None
        self._keeper = Doorkeeper(own.ed25519, time.time())
        self._callers = Callers()
        self._numbers = itertools.count()
        self._calling: dict[int, Socket] = {}
        self._links: dict[NodeId, list[Link]] = {}
        self._dialling: dict[tuple[NodeId, tuple[str, ...]], trio.Lock] = {}
        # Called whenever a link has come, gone, or changed its standing.
        self.on_change: Callable[[], None] = lambda: None

    async def listen(self, addresses: Sequence[str], nursery: trio.Nursery) -> list[str]:
        """Accept connections in `nursery`; return the addresses with their actual ports.

        Raises EnvironmentFault for an address that cannot be listened on.
        """
        self._nursery = nursery
        listeners: list[trio.SocketListener] = []
        try:
            for address in addresses:
                listeners += await bind(address)
        except BaseException:
            for listener in listeners:
                listener.socket.close()
            raise
        if listeners:
            nursery.start_soon(trio.serve_listeners, self._accept, listeners)
        return [endpoint.join(*listener.socket.getsockname()[:2]) for listener in listeners]

    def set_keys(self, keys: NetworkKeys) -> None:
        """Use other network keys for what connects from now on."""
        self._dialler.keys = keys

    # What there is.

    def all(self) -> list[Link]:
        """Return every live link, oldest first."""
        found = (each for links in self._links.values() for each in links if each.alive)
        return sorted(found, key=lambda each: each.opened_at)

    def to(self, node: NodeId) -> list[Link]:
        """Return the live links to a node."""
        return [each for each in self._links.get(node, ()) if each.alive]

    def kept(self, node: NodeId, other_than: Link | None = None) -> Link | None:
        """Return the live link to the node that stays if there are several, or None."""
        links = [each for each in self.to(node) if each is not other_than]
        if not links:
            return None
        smaller = self._own < node
        return links[stays([Candidate(e.opened_at, e.outbound is smaller) for e in links])]

    def members(self) -> set[NodeId]:
        """Return the members to whom there is a live link."""
        return {each.node for each in self.all() if each.member}

    def enforce(self) -> None:
        """Apply the gate's new list of members: who is no longer one is cut off at once."""
        for link in self.all():
            member = link.node.ed25519 in self._gate.members
            if link.member and not member:
                log.info("connection closed, node=%s is no member any more", link.node)
                self.drop(link)
            link.member = member
            if member:
                self._release(link)
        self.on_change()

    def drop(self, link: Link) -> None:
        """Close a link at once; what runs on it breaks."""
        self._forget(link)
        self._abort(link.tcp)

    def give_up(self, link: Link) -> None:
        """Close a link; nobody waits for it."""
        self._forget(link)
        self._spawn(_close, link)

    def close_all(self) -> None:
        """Close every connection at once; the peers see it end."""
        for tcp in tuple(self._sockets):
            self._abort(tcp)

    # Outbound.

    async def connect(
        self,
        node: NodeId | None,
        addresses: Sequence[str],
        troubles: dict[str, Trouble],
        other_than: Link | None = None,
        *,
        explain: bool = False,
    ) -> Link:
        """Return a link to the node, dialling once for all who ask at the same time.

        `node` None: whoever answers, and always a new link. Raises PeerError when every address has
        failed; `troubles` says of each how, as far as it has, also when this is cancelled. With
        `explain` it tells another node at an address from none.
        """
        if node is None:
            return await self.dial(None, addresses, troubles)
        key = (node, tuple(addresses))
        lock = self._dialling.setdefault(key, trio.Lock())
        try:
            async with lock:
                kept = self.kept(node, other_than)
                return kept or await self.dial(node, addresses, troubles, explain=explain)
        finally:
            if not lock.locked():
                self._dialling.pop(key, None)

    async def dial(
        self,
        node: NodeId | None,
        addresses: Sequence[str],
        troubles: dict[str, Trouble],
        *,
        explain: bool = False,
    ) -> Link:
        """Return a new link over the first address that leads to the node; raises PeerError."""
        links = await self._dialler.dial(node, addresses, troubles, explain=explain)
        if not links:
            raise unreachable(str(node) if node else None, troubles, addresses, 0.0)
        for late in links[1:]:
            self.give_up(late)
        return links[0]

    def _take_out(self, connection: Any, tcp: Socket, node: NodeId, address: str) -> Link:
        """Keep what the dialler has made."""
        link = Link(connection, tcp, node, address)
        self._register(link)
        self._spawn(self._until_closed, link)
        if not link.member:
            self._spawn(self._watch, link)
        log.debug("connected, address=%s, node=%s", address, node)
        return link

    # Inbound.

    async def _accept(self, stream: trio.SocketStream) -> None:
        """One connection until it ends; then `serve_listeners`, which calls this, closes it."""
        tcp = None
        number = next(self._numbers)
        try:
            tcp = Socket(stream)
            self._sockets.add(tcp)
            self._calling[number] = tcp
            dropped = self._callers.enter(number, tcp.ip)
            if dropped is not None:
                self._abort(self._calling[dropped])
            link = await self._take_in(tcp)
        except Exception as error:
            log.debug("inbound handshake failed, address=%s: %r", tcp and tcp.address, error)
            return
        finally:
            self._callers.leave(number)
            self._calling.pop(number, None)
            if tcp is not None:
                self._sockets.discard(tcp)
        if link is not None:
            self._sockets.add(link.tcp)
            await self._stay(link)

    async def _take_in(self, tcp: Socket) -> Link | None:
        """Return the link once the caller has proved itself; else None, and it got not a byte."""
        link = None
        with trio.move_on_after(HANDSHAKE_LIMIT_S):
            opened = await tcp.open(self._keeper, self._dialler.keys.accepting)
            if opened is not None:
                private = sockets.called(tcp, opened)
                muxed = await self._swarm.upgrade_inbound_raw_conn(private, _ANYWHERE)
                node = proved_node(muxed)
                connections = self._swarm.get_connections(muxed.peer_id)
                connection = next(each for each in connections if each.muxed_conn is muxed)
                link = Link(connection, tcp, node, "") if node != self._own else None
        return link

    async def _stay(self, link: Link) -> None:
        if link.node.ed25519 in self._gate.members:
            self._register(link)
            await self._until_closed(link)
            return
        if not self._gate.admit(link.tcp.ip):
            log.debug("a stranger was turned away, node=%s, address=%s",
                      link.node, link.tcp.address)  # fmt: skip
            self._abort(link.tcp)
            return
        link.admitted = True
        try:
            self._register(link)
            self._spawn(self._watch, link)
            await self._until_closed(link)
        finally:
            self._release(link)

    def _release(self, link: Link) -> None:
        if link.admitted:
            link.admitted = False
            self._gate.release(link.tcp.ip)

    async def _watch(self, link: Link) -> None:
        """End a link to a stranger that asks nothing, or takes too long; a new member keeps it."""
        while link.alive and not link.member:
            now = trio.current_time()
            idle_s = 0.0 if link.busy else now - link.busy_at
            age_s = 0.0 if link.outbound else now - link.opened_at
            if idle_s > STRANGER_IDLE_S or age_s > STRANGER_LIMIT_S:
                self.drop(link)
                return
            await trio.sleep(STRANGER_TICK_S)

    def _register(self, link: Link) -> None:
        link.member = link.node.ed25519 in self._gate.members
        self._links.setdefault(link.node, []).append(link)
        self.on_change()

    def _forget(self, link: Link) -> None:
        links = self._links.get(link.node, [])
        if link in links:
            links.remove(link)
            if not links:
                del self._links[link.node]
            self.on_change()

    async def _until_closed(self, link: Link) -> None:
        muxed: BoundedYamux = link.connection.muxed_conn
        try:
            await muxed.event_closed.wait()
        finally:
            self._forget(link)
            self._abort(link.tcp)

    def _abort(self, tcp: Socket) -> None:
        tcp.abort()
        self._sockets.discard(tcp)

    def _spawn(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        if self._nursery is None:
            raise RuntimeError("the host does not run yet")
        self._nursery.start_soon(function, *args)


async def _close(link: Link) -> None:
    """Say goodbye and close. Whatever libp2p raises must not leave: it would end the whole host."""
    try:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_LIMIT_S):
            await link.connection.close()
    except Exception as error:
        # As a rule the socket was closed meanwhile: by the peer, or since it is no member now.
        log.debug("a link was closed without a goodbye, node=%s: %r", link.node, error)
    finally:
        link.tcp.abort()
