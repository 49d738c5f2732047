"""Gossip over libp2p streams: gives `gossip.py`, which decides everything, its links and its time.

trio, imported in the control plane's thread only. As in GossipSub each side opens one stream, on
which it alone speaks; a stream that breaks is opened anew on the connection that stays, and then
the peer is told again what there is. What a stream may cost is bounded: an RPC's size, the work
that a link causes (it is then read later), the messages that wait for their subscriber.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from typing import Any, Protocol

import trio

from agent.control import rpc, streams
from agent.control.gossip import Arrival, Gossip
from agent.control.links import Link, Links
from agent.control.streams import GOSSIP, Talk
from agent.identity.keys import NodeId

log = logging.getLogger(__name__)

# A subscriber decides within this, or the message is passed on without its word.
SUBSCRIBER_LIMIT_S = 5.0
# Messages that wait for their subscriber; nothing more is read meanwhile.
MAX_JUDGED = 64
OPEN_LIMIT_S = 5.0
# An RPC that has begun to arrive ends within this.
RPC_LIMIT_S = 15.0
# A stream that breaks is opened again after this, doubled each time it breaks soon.
REOPEN_FIRST_S = 0.1
REOPEN_MAX_S = 10.0
# One peer's inbound gossip streams: the one in use, and the one that replaces it.
MAX_STREAMS_PER_PEER = 2


class Asker(Protocol):
    """What the bridge gives its guest."""

    def ask(self, question: str, *args: bytes | str | int) -> Awaitable[Any]:
        """Ask the asyncio side."""


class Topics:
    """The gossip of one node."""

    def __init__(self, bridge: Asker, links: Links, own: NodeId) -> None:
        self._ask = bridge.ask
        self._links = links
        self.gossip = Gossip(own.ed25519)
        self._nursery: trio.Nursery | None = None
        self._speaking: dict[NodeId, trio.CancelScope] = {}
        self._wake: dict[NodeId, trio.Event] = {}
        self._wake_timer = trio.Event()
        self._due = float("inf")
        self._listening: dict[NodeId, list[trio.CancelScope]] = {}
        self._judged = trio.CapacityLimiter(MAX_JUDGED)

    async def run(self, nursery: trio.Nursery) -> None:
        """Work in `nursery` until cancelled."""
        self._nursery = nursery
        self.links_changed()
        while True:
            self._due = self._next_due()
            with trio.move_on_at(self._due):
                await self._wake_timer.wait()
            self._wake_timer = trio.Event()
            self.gossip.tick(trio.current_time())
            self.flush()

    def publish(self, topic: str, data: bytes) -> None:
        """Send a sealed envelope to everybody who wants the topic."""
        self.gossip.publish(topic, data, trio.current_time())
        self.flush()

    def subscribe(self, topic: str) -> None:
        """Take a topic; its messages go to the bridge as `deliver`."""
        self.gossip.subscribe(topic)
        self.flush()

    def links_changed(self) -> None:
        """Speak to new members, end with those who are gone, move to the link that stays."""
        if self._nursery is None:
            return
        linked = self._links.members()
        for node in self._speaking.keys() - linked:
            self._speaking.pop(node).cancel()
            self._wake.pop(node, None)
        for peer in self.gossip.peers() - {node.ed25519 for node in linked}:
            self.gossip.remove_peer(peer)
        for node in linked - self._speaking.keys():
            self._speaking[node] = trio.CancelScope()
            self._nursery.start_soon(self._speak, node, self._speaking[node])
        for node in linked:
            self._rouse(node)

    # Outbound.

    async def _speak(self, node: NodeId, scope: trio.CancelScope) -> None:
        pause_s = REOPEN_FIRST_S
        with scope:
            while True:
                link = self._links.kept(node)
                if link is not None and link.member:
                    began = trio.current_time()
                    try:
                        await self._speak_on(node, link)
                    except* Exception as errors:
                        # A connection breaks as often as not while its scope is being cancelled;
                        # what is beside the cancellation would end the whole control plane.
                        log.debug("gossip stream ended, node=%s: %r", node, errors.exceptions)
                    if trio.current_time() - began > REOPEN_MAX_S:
                        pause_s = REOPEN_FIRST_S
                await trio.sleep(pause_s)
                pause_s = min(REOPEN_MAX_S, pause_s * 2)

    async def _speak_on(self, node: NodeId, link: Link) -> None:
        """Send what there is until the stream breaks or another link stays."""
        with trio.fail_after(OPEN_LIMIT_S):
            talk = await streams.open_stream(link.connection, GOSSIP)
        async with streams.ending(talk), trio.open_nursery() as nursery:

            async def watch() -> None:
                await streams.until_left(talk)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            self.gossip.add_peer(node.ed25519, trio.current_time())
            while True:
                raw = self.gossip.take(node.ed25519, trio.current_time())
                if raw is not None:
                    await talk.write(rpc.encode_length(len(raw)) + raw)
                    continue
                event = self._wake.setdefault(node, trio.Event())
                await event.wait()
                # Woken also when links come and go.
                if self._links.kept(node) is not link:
                    break
            nursery.cancel_scope.cancel()

    def flush(self) -> None:
        """Wake those who have something to send, and the timer."""
        for peer in self.gossip.pending():
            self._rouse(NodeId(peer))
        if self._next_due() < self._due:
            self._wake_timer.set()

    def _next_due(self) -> float:
        due = self.gossip.wake_at()
        return float("inf") if due is None else due

    def _rouse(self, node: NodeId) -> None:
        event = self._wake.pop(node, None)
        if event is not None:
            event.set()

    # Inbound.

    async def listen(self, node: NodeId, talk: Talk) -> None:
        """Take RPCs from a member's stream until it ends; raises what ends it."""
        scopes = self._listening.setdefault(node, [])
        with trio.CancelScope() as scope:
            scopes.append(scope)
            if len(scopes) > MAX_STREAMS_PER_PEER:
                scopes[0].cancel()
            try:
                while True:
                    await self._take(node, await _read_rpc(talk))
            finally:
                scopes.remove(scope)
                if not scopes:
                    self._listening.pop(node, None)

    async def _take(self, node: NodeId, raw: bytes) -> None:
        peer = node.ed25519
        now = trio.current_time()
        # A peer may speak before our own stream to it is open.
        if peer not in self.gossip.peers():
            self.gossip.add_peer(peer, now)
        arrivals = self.gossip.receive(peer, raw, now, time.time())
        self.flush()
        for index, arrival in enumerate(arrivals):
            try:
                await self._judged.acquire_on_behalf_of(arrival.id)
            except BaseException:
                for left in arrivals[index:]:
                    self.gossip.settle(left.id, False, now)
                raise
            self._start(arrival)
        debt_s = self.gossip.debt_s(peer, trio.current_time())
        if debt_s:
            log.debug("too much from one link, node=%s, paused_s=%.1f", node, debt_s)
            await trio.sleep(debt_s)

    def _start(self, arrival: Arrival) -> None:
        if self._nursery is None:
            raise RuntimeError("the host does not run yet")
        self._nursery.start_soon(self._judge, arrival)

    async def _judge(self, arrival: Arrival) -> None:
        """Let the subscriber decide, then pass the message on or drop it."""
        fits = True
        try:
            with trio.move_on_after(SUBSCRIBER_LIMIT_S):
                fits = bool(
                    await self._ask("deliver", arrival.topic, arrival.author, arrival.payload)
                )
        except Exception as error:
            log.debug("a message was not delivered, topic=%s: %r", arrival.topic, error)
            fits = False
        finally:
            self._judged.release_on_behalf_of(arrival.id)
            self.gossip.settle(arrival.id, fits, trio.current_time())
        self.flush()


async def _read_rpc(talk: Talk) -> bytes:
    """Return one RPC; raises RpcError for one that is too long."""
    head = await streams.read_exactly(talk, 1)
    with trio.fail_after(RPC_LIMIT_S):
        while (size := rpc.decode_length(head)) is None:
            head += await streams.read_exactly(talk, 1)
        return await streams.read_exactly(talk, size)
