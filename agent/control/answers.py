"""What peers ask of this node: every inbound stream, from its first byte to its end.

trio, imported in the control plane's thread only. The gate decides before anything is said: a
stranger's stream of a protocol that is not open to strangers is reset without an answer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from agent.control import frames, streams
from agent.control.gate import Gate
from agent.control.streams import GOSSIP, Talk
from agent.control.topics import Asker
from agent.errors import PeerError
from agent.identity.keys import NodeId

log = logging.getLogger(__name__)

# A peer that opens a stream says what it wants within this, and then sends its request.
REQUEST_LIMIT_S = 10
# Inbound: requests in work at once from everybody, streams at once on one connection.
MAX_REQUESTS = 64
MAX_STREAMS_PER_CONNECTION = 32
# One peer must leave some for the others; a newcomer asks one small thing.
MAX_REQUESTS_PER_PEER = 32
MAX_STRANGERS_REQUESTS = 16
MAX_STRANGERS_STREAMS = 2
MAX_STRANGERS_REQUEST_BYTES = 64 * 1024

Listen = Callable[[NodeId, Talk], Awaitable[None]]


class Answers:
    """Answers the streams of every connection."""

    def __init__(self, bridge: Asker, gate: Gate, listen: Listen) -> None:
        """`listen` takes a member's gossip stream."""
        self._ask = bridge.ask
        self._gate = gate
        self._listen = listen
        self._requests: Counter[NodeId] = Counter()
        self._streams: Counter[int] = Counter()

    async def take(self, stream: Any) -> None:
        """Take one stream; must not raise, for that ends the swarm."""
        connection = id(stream.swarm_conn)
        self._streams[connection] += 1
        try:
            await self._take(NodeId.parse(str(stream.muxed_conn.peer_id)), Talk(stream))
        except* Exception as errors:  # also what comes beside a cancellation
            log.debug(
                "inbound stream ended, peer=%s: %r", stream.muxed_conn.peer_id, errors.exceptions
            )
        finally:
            self._streams[connection] -= 1
            if not self._streams[connection]:
                del self._streams[connection]
            await streams.reset(stream)

    async def _take(self, node: NodeId, talk: Talk) -> None:
        member = node.ed25519 in self._gate.members
        limit = MAX_STREAMS_PER_CONNECTION if member else MAX_STRANGERS_STREAMS
        if self._streams[id(talk.stream.swarm_conn)] > limit:
            raise PeerError("too many streams on one connection")
        with trio.fail_after(REQUEST_LIMIT_S):
            protocol = await streams.accept(
                talk, lambda asked: self._serves(node, asked), silent=not member
            )
        if protocol == GOSSIP:
            await self._listen(node, talk)
        else:
            await self._answer(protocol, node, talk)

    def _serves(self, node: NodeId, protocol: str) -> bool:
        if protocol == GOSSIP:
            return node.ed25519 in self._gate.members
        return self._gate.serves(node.ed25519, protocol)

    async def _answer(self, protocol: str, node: NodeId, talk: Talk) -> None:
        """One request: read it, have it handled on the asyncio side, send what comes back."""
        member = node.ed25519 in self._gate.members
        if not self._room_for(node, member):
            busy = PeerError("the node is busy", hint="Try again in a few seconds.")
            await talk.write(frames.encode_refusal(busy))
            await streams.linger(talk)
            return
        limit = frames.MAX_PAYLOAD_BYTES if member else MAX_STRANGERS_REQUEST_BYTES
        self._requests[node] += 1
        try:
            with trio.fail_after(REQUEST_LIMIT_S):
                request = await streams.read_frame(talk, limit)
            reply = await self._handle(protocol, node, request, talk)
            if reply is None:
                return
            await talk.write(reply)
        finally:
            self._requests[node] -= 1
            if not self._requests[node]:
                del self._requests[node]
        await streams.linger(talk)

    def _room_for(self, node: NodeId, member: bool) -> bool:
        if self._requests.total() >= MAX_REQUESTS:
            return False
        if self._requests[node] >= MAX_REQUESTS_PER_PEER:
            return False
        strangers = (
            n for who, n in self._requests.items() if who.ed25519 not in self._gate.members
        )
        return member or sum(strangers) < MAX_STRANGERS_REQUESTS

    async def _handle(
        self, protocol: str, node: NodeId, request: bytes, talk: Talk
    ) -> bytes | None:
        """Return the reply frame; None if the caller left meanwhile, which cancels the work."""
        reply: bytes | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await streams.until_left(talk)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            reply = await self._ask("answer", protocol, str(node), request)
            nursery.cancel_scope.cancel()
        return reply
