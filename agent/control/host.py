"""`ControlPlane`: requests, gossip and links between nodes, for asyncio code (design §6).

Used by the daemon and its services. Not for data: a request or a reply holds at most 4 MiB, a
published message 64 KiB, and a connection carries some MiB/s. Everything here runs on the asyncio
loop; libp2p is in the bridge's thread and is imported when `start` is called.

Who is no member gets nothing. Without a network key not a byte comes back; with one, and an
identity that `set_members` did not name, only the protocols that are served to strangers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial

from agent import endpoint
from agent.control import envelope, frames, setup
from agent.control.bridge import BridgeClosed, Crossing, Guest, GuestFault, TrioThread
from agent.control.life import Follower, Life
from agent.control.publishing import Publisher
from agent.control.setup import Link, Setup
from agent.errors import (
    CoveyError,
    EnvironmentFault,
    NotRunning,
    PeerError,
    UsageError,
    one_line,
)
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

log = logging.getLogger(__name__)

# What a handler may take; a caller who leaves earlier cancels it earlier.
HANDLER_LIMIT_S = 60.0
# The trio side keeps a request's time itself; this much later something is wrong with that side.
BRIDGE_GRACE_S = 5.0
COMMAND_LIMIT_S = 5.0
MAX_PROTOCOL_CHARACTERS = 100
MAX_TOPICS = 64

Handler = Callable[[NodeId, bytes], Awaitable[bytes]]
Subscriber = Callable[[NodeId, bytes], Awaitable[bool]]


class ControlPlane:
    """One node's end of the control plane. One start, one stop; between them faults are mended."""

    def __init__(self, key: NodeKey, network_keys: NetworkKeys, listen: Sequence[str]) -> None:
        """`network_keys`: shared by a mesh; who has none of them gets no answer.

        `listen`: `HOST:PORT` each, port 0 for any; empty for a node that only dials. Raises
        UsageError for an address that is none.
        """
        for address in listen:
            endpoint.split(address, lowest_port=0)
        self._key = key
        self._keys = network_keys
        self._listen = tuple(listen)
        self._handlers: dict[str, Handler] = {}
        self._strangers: dict[str, bool] = {}
        self._members: frozenset[NodeId] = frozenset()
        self._wanted: dict[NodeId, tuple[str, ...]] = {}
        self._subscribers: dict[str, Subscriber] = {}
        self._watchers: list[Callable[[NodeId, bool], None]] = []
        self._links_told: set[NodeId] = set()
        self._publisher = Publisher(key)
        self._life = Life(self._make_bridge, self._begin, self._forget_links)
        self._addresses: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        """Whether requests are possible: started, not stopped, and not down by a fault."""
        return self._bridge.running

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses listened on, with the actual ports; empty before `start`."""
        return self._addresses

    async def start(self) -> None:
        """Import libp2p, listen, and return when ready.

        From then on, when a fault ends it, it is started again with growing pauses, at the same
        addresses and with all that it was told; requests raise NotRunning meanwhile, links are
        gone, and a message of the last two minutes may come to a subscriber a second time.

        Raises EnvironmentFault if a port is in use, or if libp2p cannot start on this machine.
        """
        await self._life.start()

    def start_later(self, error: EnvironmentFault) -> None:
        """After a `start` that raised `error`: go on trying in the same way."""
        self._life.start_later(error)

    def on_fault(self, follower: Follower) -> None:
        """Call `follower` on the asyncio loop each time that the control plane is down by a fault.

        It gets a Down: why, and when the next start is tried; and None when it is up again.
        """
        self._life.follow(follower)

    async def stop(self) -> None:
        """End requests (they raise NotRunning) and handlers, close connections, free the port.

        Takes 0.3 s as a rule and never more than some 10 s.
        """
        was_running = self.running
        await self._life.stop()
        if was_running:
            log.info("control plane down, node=%s", self._key.id)

    # Who belongs to the mesh.

    def set_members(self, nodes: Iterable[NodeId]) -> None:
        """Replace who is a member; before the first call nobody is.

        Streams, gossip and connections of others are refused, and those that are open end at once.
        """
        self._members = frozenset(nodes)
        self._bridge.post("members", setup.encode_members(self._members))

    def set_network_keys(self, keys: NetworkKeys) -> None:
        """Replace the network keys, for connections from now on; those that are open stay."""
        self._keys = keys
        self._bridge.post("keys", setup.encode_keys(keys))

    # Requests.

    def serve(self, protocol: str, handler: Handler, *, strangers: bool = False) -> None:
        """Answer `protocol` (a name like `/covey/join/1`) with `handler`, from now on.

        The handler runs on the asyncio loop. It gets the caller's proved identity and the request,
        and returns the answer (at most 4 MiB each). A CoveyError that it raises is raised at the
        caller; of any other exception the caller learns nothing. It is cancelled when the caller
        leaves, and after HANDLER_LIMIT_S. `strangers` also answers those who are no members: with
        64 KiB for the request and at most 30 s in all.
        """
        _check_protocol(protocol)
        self._handlers[protocol] = handler
        self._strangers[protocol] = strangers
        self._bridge.post("serve", protocol, int(strangers))

    async def connections(self) -> int:
        """Return how many connections are open, in both directions."""
        try:
            count = await self._bridge.call("connections", timeout_s=COMMAND_LIMIT_S)
        except (BridgeClosed, GuestFault, TimeoutError):
            return 0
        return count if isinstance(count, int) else 0

    async def request(
        self,
        peer: NodeId | None,
        addresses: Sequence[str],
        protocol: str,
        payload: bytes,
        *,
        timeout_s: float,
    ) -> bytes:
        """Send one request to `peer` and return its answer.

        An open connection to the peer is used, else `addresses` (HOST:PORT; names are resolved each
        time) are tried side by side, and the connection is kept. `peer` None asks whoever answers
        there, over a new connection: the caller has to check by what is signed in the answer who
        that was. The request is delivered at most once. Raises, within `timeout_s`: PeerError if
        the peer cannot be reached, does not answer or answers nonsense; the CoveyError that its
        handler raised; NotRunning if this side is not up; UsageError for an address that is none;
        ValueError for a payload over 4 MiB.
        """
        _check_protocol(protocol)
        if len(payload) > frames.MAX_PAYLOAD_BYTES:
            raise ValueError(f"a request holds at most {frames.MAX_PAYLOAD_BYTES} bytes")
        if peer == self._key.id:
            raise UsageError("this node was asked to send a request to itself")
        for address in addresses:
            endpoint.split(address)
        try:
            reply = await self._bridge.call(
                "request",
                str(peer) if peer is not None else "",
                protocol,
                payload,
                timeout_s,
                *dict.fromkeys(addresses),
                timeout_s=timeout_s + BRIDGE_GRACE_S,
            )
        except BridgeClosed:
            raise self._not_running() from None
        except (GuestFault, TimeoutError) as error:
            log.error("request failed inside the control plane, protocol=%s: %r", protocol, error)
            raise PeerError(
                f"the request failed on this side {_who(peer)}",
                hint="This is a fault of Covey; the log says more.",
            ) from None
        try:
            return frames.decode_reply(reply if isinstance(reply, bytes) else b"")
        except frames.FrameError as error:
            raise PeerError(
                f"the node's answer to {protocol} makes no sense: {error} {_who(peer)}",
                hint="It may run another version of Covey.",
            ) from None

    # Gossip.

    async def publish(self, topic: str, payload: bytes) -> None:
        """Send a message, signed by this node, to every member that has subscribed to the topic.

        Returns when it is on its way; it reaches everybody who is connected, also by way of
        others, and who connects within two minutes. Waits when this node publishes more than
        `publishing.RATE_PER_S`. Raises NotRunning; ValueError for a payload over 64 KiB or what is
        no topic name.
        """
        envelope.check_topic(topic)
        if len(payload) > envelope.MAX_PAYLOAD_BYTES:
            raise ValueError(f"a message holds at most {envelope.MAX_PAYLOAD_BYTES} bytes")
        try:
            data = await self._publisher.seal(topic, payload)
            await self._bridge.call("publish", topic, data, timeout_s=COMMAND_LIMIT_S)
        except (BridgeClosed, GuestFault, TimeoutError):
            raise self._not_running() from None

    def subscribe(self, topic: str, handler: Subscriber) -> None:
        """Take a topic's messages from now on.

        The handler runs on the asyncio loop, once for each message of another node, with its proved
        author, a member, and its payload; messages may come in any order. It returns False for a
        payload that makes no sense, which is then not passed on to others; it has 5 s to decide.
        Raises ValueError for what is no topic name.
        """
        envelope.check_topic(topic)
        if topic not in self._subscribers and len(self._subscribers) >= MAX_TOPICS:
            raise ValueError(f"more than {MAX_TOPICS} topics")
        self._subscribers[topic] = handler
        self._bridge.post("subscribe", topic)

    # Links.

    def keep_links(self, wanted: Mapping[NodeId, Sequence[str]]) -> None:
        """Keep a connection to each of these nodes from now on (addresses best first, HOST:PORT).

        What fails is dialled again with growing pauses. A connection to a node that was named
        before and is not any more is closed when nothing goes on in it. Raises UsageError for an
        address that is none.
        """
        for addresses in wanted.values():
            for address in addresses:
                endpoint.split(address)
        self._wanted = {node: tuple(addresses) for node, addresses in wanted.items()}
        self._bridge.post("keep", setup.encode_wanted(self._wanted))

    async def links(self) -> list[Link]:
        """Return the connections to members, oldest first, in both directions."""
        try:
            packed = await self._bridge.call("links", timeout_s=COMMAND_LIMIT_S)
        except (BridgeClosed, GuestFault, TimeoutError):
            return []
        return setup.decode_links(packed) if isinstance(packed, bytes) else []

    def on_link(self, callback: Callable[[NodeId, bool], None]) -> None:
        """Call `callback` on the asyncio loop with a node and whether there is a link to it.

        (node, True) when the first connection to a member is up, (node, False) when the last one
        has gone.
        """
        self._watchers.append(callback)

    # The bridge there is.

    @property
    def _bridge(self) -> TrioThread:
        return self._life.bridge

    def _make_bridge(self) -> TrioThread:
        return TrioThread(
            "control plane",
            {"answer": self._answer, "deliver": self._deliver, "linked": self._linked},
        )

    async def _begin(self, bridge: TrioThread) -> None:
        """Start a bridge with all that this node has said so far; raises EnvironmentFault."""
        made_with = Setup(
            self._key.seed,
            self._keys,
            # Others know the ports that it had, also those that the system chose.
            self._addresses or self._listen,
            dict(self._strangers),
            tuple(self._subscribers),
            setup.encode_members(self._members),
        )
        try:
            await bridge.start(partial(_load, made_with=made_with))
            self._tell_all()
            bound = await bridge.call("bound", timeout_s=COMMAND_LIMIT_S)
        except (GuestFault, BridgeClosed, TimeoutError) as error:
            await bridge.stop()
            raise EnvironmentFault(
                f"the control plane (libp2p) cannot start: {one_line(str(error))}",
                hint="Install Covey's requirements anew; without it no node can join through here.",
            ) from None
        self._addresses = tuple(str(bound).split())
        log.info("control plane up, node=%s, listen=%s", self._key.id, bound or "nowhere")

    def _forget_links(self) -> None:
        """A fault has ended all links; nobody on the other side is left to say so."""
        for node in sorted(self._links_told):
            self._note_link(node, up=False)

    def _not_running(self) -> NotRunning:
        return NotRunning("the control plane is not running", hint=self._life.advice())

    # What the trio side asks.

    def _tell_all(self) -> None:
        """Say again what may have changed while the trio side started."""
        for protocol, strangers in self._strangers.items():
            self._bridge.post("serve", protocol, int(strangers))
        for topic in self._subscribers:
            self._bridge.post("subscribe", topic)
        self._bridge.post("members", setup.encode_members(self._members))
        self._bridge.post("keys", setup.encode_keys(self._keys))
        self._bridge.post("keep", setup.encode_wanted(self._wanted))

    async def _linked(self, peer: str, up: int) -> Crossing:
        self._note_link(NodeId.parse(peer), up=bool(up))
        return None

    def _note_link(self, node: NodeId, *, up: bool) -> None:
        log.info("link %s, node=%s", "up" if up else "down", node)
        if up:
            self._links_told.add(node)
        else:
            self._links_told.discard(node)
        for callback in tuple(self._watchers):
            try:
                callback(node, up)
            except Exception:
                log.exception("a link's watcher failed, node=%s", node)

    async def _deliver(self, topic: str, author: bytes, payload: bytes) -> Crossing:
        """Return 1 if the subscriber takes the message."""
        node = NodeId(author)
        try:
            return int(await self._subscribers[topic](node, payload))
        except CoveyError as error:
            log.debug("message refused, topic=%s, author=%s: %s", topic, node, error.message)
        except Exception:
            log.exception("subscriber failed, topic=%s, author=%s", topic, node)
        return 0

    async def _answer(self, protocol: str, peer: str, request: bytes) -> bytes:
        """Return the reply frame for a peer's request."""
        try:
            async with asyncio.timeout(HANDLER_LIMIT_S) as limit:
                answer = await self._handlers[protocol](NodeId.parse(peer), request)
                return frames.encode_reply(answer)
        except CoveyError as error:
            return frames.encode_refusal(error)
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                log.error("handler took over %g s, protocol=%s", HANDLER_LIMIT_S, protocol)
            else:
                log.exception("handler failed, protocol=%s, peer=%s", protocol, peer)
            return frames.encode_refusal(
                PeerError("the node met an internal error", hint="Its log says which.")
            )


def _check_protocol(protocol: str) -> None:
    fits = protocol.startswith("/") and len(protocol) <= MAX_PROTOCOL_CHARACTERS
    if not (fits and protocol.isascii() and protocol.isprintable()):
        raise ValueError(f"{protocol!r} is not a protocol name")


def _who(peer: NodeId | None) -> str:
    return f"(peer …{peer.short})" if peer is not None else "(any node)"


def _load(bridge: TrioThread, *, made_with: Setup) -> Guest:
    # Here and not at the top: libp2p takes 1-2 s and 35 MB, and belongs into the bridge's thread.
    from agent.control import lean

    lean.prepare()
    from agent.control.node import Node

    return Node(bridge, made_with)
