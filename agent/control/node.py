"""The trio side of the control plane: ask a peer, answer a peer, and what the other parts need.

Runs in the control plane's thread as the bridge's guest, and is imported there, for it imports
libp2p. `host.py` is its other half; what crosses between them is bytes, numbers and strings.
`links.py` has the connections, `keeper.py` the wanted ones, `topics.py` the gossip, `answers.py`
what peers ask.

A request takes one stream. The stream is negotiated first (one round trip, which proves that a
connection kept from earlier still lives), then the request goes out, once. So a dead connection is
replaced before a request is sent, and never after: no request is delivered twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import SystemRandom
from typing import Any

import trio
from libp2p.tools.anyio_service import background_trio_service

from agent.control import frames, setup, streams
from agent.control.answers import Answers
from agent.control.gate import Gate
from agent.control.keeper import Keeper
from agent.control.links import Link, Links
from agent.control.setup import Setup
from agent.control.swarm import Host
from agent.control.topics import Asker, Topics
from agent.control.troubles import BROKE, Trouble, unreachable
from agent.errors import PeerError
from agent.identity.keys import NodeId, NodeKey

log = logging.getLogger(__name__)

# More addresses than this of one peer are not tried.
MAX_ADDRESSES = 16
# A kept connection that does not take a new stream for this long, or for half of what a request
# has left, is given up for a new one if the other machine does not even acknowledge what was sent,
# or nothing has come from it for REUSE_LIMIT_S. Else its agent is only slow, and yet another
# connection would make it slower.
REUSE_LIMIT_S = 5.0
_LOOK_AGAIN_S = 0.5


class Node:
    """The bridge's guest: a libp2p host with Covey's protocols."""

    def __init__(self, bridge: Asker, made_with: Setup) -> None:
        self._ask = bridge.ask
        self._setup = made_with
        self._host = Host(made_with.seed)
        own = NodeKey(made_with.seed).id
        if str(self._host.id) != str(own):
            raise RuntimeError(f"libp2p names this node {self._host.id}, Covey {own}")
        self._gate = Gate()
        self._links = Links(self._host, own, self._gate, made_with.keys)
        self._topics = Topics(bridge, self._links, own)
        self._keeper = Keeper(self._links, own, SystemRandom())
        answers = Answers(bridge, self._gate, self._topics.listen)
        self._host.swarm.set_stream_handler(answers.take)
        self._links.on_change = self._note_change
        self._changed = trio.Event()
        self._linked: set[NodeId] = set()
        self._to_tell = trio.Event()
        self._bound: list[str] = []
        self.commands: Mapping[str, Callable[..., Awaitable[Any]]] = {
            "bound": self.bound,
            "connections": self.connections,
            "links": self.links,
            "request": self.request,
            "serve": self.serve,
            "members": self.members,
            "keys": self.keys,
            "keep": self.keep,
            "subscribe": self.subscribe,
            "publish": self.publish,
        }

    async def run(self, started: Callable[[], None]) -> None:
        """Listen, call `started`, run until cancelled.

        Raises EnvironmentFault for an address that cannot be listened on.
        """
        for protocol, strangers in self._setup.protocols.items():
            await self.serve(protocol, int(strangers))
        for topic in self._setup.topics:
            await self.subscribe(topic)
        await self.members(self._setup.members)
        async with background_trio_service(self._host.swarm):
            try:
                async with trio.open_nursery() as nursery:
                    self._bound = await self._links.listen(self._setup.listen, nursery)
                    nursery.start_soon(self._topics.run, nursery)
                    nursery.start_soon(self._keeper.run, nursery)
                    nursery.start_soon(self._follow_links)
                    nursery.start_soon(self._tell_links)
                    started()
                    await trio.sleep_forever()
            finally:
                self._links.close_all()

    # The commands.

    async def bound(self) -> str:
        """Return the addresses listened on, HOST:PORT separated by spaces."""
        return " ".join(self._bound)

    async def connections(self) -> int:
        """Return how many connections are open."""
        return len(self._links.all())

    async def links(self) -> bytes:
        """Return every connection to a member, oldest first, packed."""
        now = trio.current_time()
        return setup.encode_links(
            setup.Link(each.node, each.tcp.address, each.outbound, now - each.opened_at)
            for each in self._links.all()
            if each.member
        )

    async def serve(self, protocol: str, strangers: int) -> None:
        """Begin to answer a protocol."""
        self._gate.serve(protocol, strangers=bool(strangers))

    async def members(self, packed: bytes) -> None:
        """Replace the members: ids of 32 bytes one after the other."""
        members = setup.decode_members(packed)
        self._gate.set_members(members)
        self._topics.gossip.set_members(members, trio.current_time(), time.time())
        self._links.enforce()
        self._topics.flush()

    async def keys(self, packed: bytes) -> None:
        """Replace the network keys; connections there are go on."""
        self._links.set_keys(setup.decode_keys(packed))

    async def keep(self, packed: bytes) -> None:
        """Replace the nodes to which a connection is kept."""
        self._keeper.keep(setup.decode_wanted(packed))

    async def subscribe(self, topic: str) -> None:
        """Take a topic."""
        self._topics.subscribe(topic)

    async def publish(self, topic: str, data: bytes) -> None:
        """Send a sealed envelope."""
        self._topics.publish(topic, data)

    async def request(
        self, peer: str, protocol: str, payload: bytes, timeout_s: float, *addresses: str
    ) -> bytes:
        """Return the payload of the peer's reply frame; raises PeerError, within `timeout_s`.

        `peer` empty: whoever answers at the addresses.
        """
        node = NodeId.parse(peer) if peer else None
        addresses = addresses[:MAX_ADDRESSES]
        troubles: dict[str, Trouble] = {}
        asked: list[Link] = []
        with trio.move_on_after(timeout_s) as scope:
            reply = await self._exchange(node, protocol, payload, addresses, troubles, asked)
        if not scope.cancelled_caught:
            return reply
        if not asked:
            raise unreachable(peer, troubles, addresses, timeout_s)
        where = asked[0].tcp.address or "the node"
        raise PeerError(
            f"{where} did not answer {protocol} within {timeout_s:g} s {_who(asked[0].node)}",
            hint="It is connected, but slow or stuck: try again, then look at that node's log.",
        )

    async def _exchange(
        self,
        node: NodeId | None,
        protocol: str,
        payload: bytes,
        addresses: Sequence[str],
        troubles: dict[str, Trouble],
        asked: list[Link],
    ) -> bytes:
        """Send the request and return the reply. `asked` gets the link that it was sent on."""
        try:
            link, talk = await self._open(node, protocol, addresses, troubles, asked)
            async with streams.ending(talk):
                asked[:] = [link]
                await talk.write(frames.encode_frame(payload))
                return await streams.read_frame(talk, frames.MAX_FRAME_BYTES)
        except PeerError:
            raise
        except streams.NotServedError:
            raise PeerError(
                f"the node does not answer {protocol} {_who(node)}",
                hint="It may run another version of Covey, or lack this role.",
            ) from None
        except streams.StreamRefusedError:
            raise PeerError(
                f"the node takes no more requests from here now {_who(node)}",
                hint="Try again in a few seconds; if it goes on, it does not know this node as a "
                "member.",
            ) from None
        except frames.FrameError as error:
            raise PeerError(
                f"the node's answer to {protocol} makes no sense: {error} {_who(node)}",
                hint="It may run another version of Covey.",
            ) from None
        except Exception as error:
            log.debug("request failed, protocol=%s, node=%s: %r", protocol, node, error)
            raise PeerError(
                f"{BROKE} {protocol} {_who(node)}",
                hint="Try again; if it goes on, look at that node's log.",
            ) from None

    async def _open(
        self,
        node: NodeId | None,
        protocol: str,
        addresses: Sequence[str],
        troubles: dict[str, Trouble],
        asked: list[Link],
    ) -> tuple[Link, streams.Talk]:
        """Return a talk with the peer over the connection there is, or a new one if that is dead.

        `asked` as for `_exchange`. Raises StreamRefusedError when the connection lives and the peer
        refused the stream.
        """
        kept = self._links.kept(node) if node is not None else None
        if kept is not None:
            asked.append(kept)
            left_s = trio.current_effective_deadline() - trio.current_time()
            try:
                talk = await self._open_on(kept, protocol, min(REUSE_LIMIT_S, left_s / 2))
            except (streams.NotServedError, streams.StreamRefusedError):
                raise
            except Exception as error:
                talk = None
                log.debug("the kept connection is dead, node=%s: %r", node, error)
            if talk is not None:
                return kept, talk
            asked.clear()
            self._links.give_up(kept)
        link = await self._links.connect(node, addresses, troubles, kept, explain=True)
        return link, await streams.open_stream(link.connection, protocol)

    async def _open_on(self, link: Link, protocol: str, patience_s: float) -> streams.Talk | None:
        """Return a talk over a link there is; None when the other machine is not there."""
        began = trio.current_time()
        opened: list[streams.Talk] = []
        faults: list[Exception] = []
        async with trio.open_nursery() as nursery:

            async def open_stream() -> None:
                try:
                    opened.append(await streams.open_stream(link.connection, protocol))
                except Exception as error:
                    faults.append(error)
                nursery.cancel_scope.cancel()

            nursery.start_soon(open_stream)
            await trio.sleep(patience_s)
            while not link.tcp.stalled():
                if trio.current_time() - max(began, link.tcp.heard_at) >= REUSE_LIMIT_S:
                    break
                await trio.sleep(_LOOK_AGAIN_S)
            nursery.cancel_scope.cancel()
        if faults:
            raise faults[0]
        return opened[0] if opened else None

    # What happens to links.

    def _note_change(self) -> None:
        self._changed.set()

    async def _follow_links(self) -> None:
        """Tell the other parts, one change after the other."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            self._keeper.links_changed()
            self._topics.links_changed()
            self._linked = self._links.members()
            self._to_tell.set()

    async def _tell_links(self) -> None:
        """Tell the asyncio side; if it is slow, what came and went meanwhile is left out."""
        told: set[NodeId] = set()
        while True:
            await self._to_tell.wait()
            self._to_tell = trio.Event()
            linked = self._linked
            for node in sorted(told - linked):
                await self._ask("linked", str(node), 0)
            for node in sorted(linked - told):
                await self._ask("linked", str(node), 1)
            told = linked


def _who(node: NodeId | None) -> str:
    return f"(peer …{node.short})" if node is not None else "(any node)"
