"""The trio side of the control plane: ask a peer, answer a peer.

Runs in the control plane's thread as the bridge's guest, and is imported there, for it imports
libp2p. `host.py` is its other half; what crosses between them is bytes, numbers and strings.

A request takes one stream. The stream is negotiated first (one round trip, which proves that a
connection kept from earlier still lives), then the request goes out, once. So a dead connection is
replaced before a request is sent, and never after: no request is delivered twice.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import trio
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.tools.anyio_service import background_trio_service

from agent import endpoint
from agent.control import frames, streams
from agent.control.links import Links
from agent.control.swarm import build_host
from agent.control.troubles import Trouble, unreachable
from agent.errors import PeerError
from agent.identity.keys import NodeId, NodeKey

log = logging.getLogger(__name__)

# A peer that opens a stream says what it wants within this, and then sends its request.
REQUEST_LIMIT_S = 10
# Inbound: requests in work at once from everybody, streams at once on one connection.
MAX_REQUESTS = 64
MAX_STREAMS_PER_CONNECTION = 32
# More addresses than this of one peer are not tried.
MAX_ADDRESSES = 16
# A kept connection that does not take a new stream for this long, or for half of what a request
# has left, is given up for a new one.
REUSE_LIMIT_S = 5.0


class Asker(Protocol):
    """What the bridge gives its guest."""

    def ask(self, question: str, *args: bytes | str) -> Awaitable[Any]:
        """Ask the asyncio side."""


class Node:
    """The bridge's guest: a libp2p host with Covey's protocols."""

    def __init__(
        self,
        bridge: Asker,
        seed: bytes,
        network_key: bytes | None,
        listen: Sequence[str],
        protocols: Sequence[str],
    ) -> None:
        """`protocols` are answered from the first connection on."""
        self._ask = bridge.ask
        self._listen = listen
        self._host = build_host(seed, network_key)
        own = NodeKey(seed).id
        if str(self._host.get_id()) != str(own):
            raise RuntimeError(f"libp2p names this node {self._host.get_id()}, Covey {own}")
        self._host.get_network().set_stream_handler(self._take_stream)
        self._links = Links(self._host)
        self._bound: list[str] = []
        self._requests = 0
        self._streams: Counter[int] = Counter()
        self._protocols = protocols
        self.commands: Mapping[str, Callable[..., Awaitable[Any]]] = {
            "bound": self.bound,
            "connections": self.connections,
            "request": self.request,
            "serve": self.serve,
        }

    async def run(self, started: Callable[[], None]) -> None:
        """Listen, call `started`, run until cancelled.

        Raises EnvironmentFault for an address that cannot be listened on.
        """
        for protocol in self._protocols:
            await self.serve(protocol)
        async with background_trio_service(self._host.get_network()):
            try:
                async with trio.open_nursery() as nursery:
                    self._bound = await self._links.listen(self._listen, nursery)
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
        return sum(not each.is_closed for each in self._host.get_network().get_connections())

    async def serve(self, protocol: str) -> None:
        """Begin to answer a protocol."""
        self._host.set_stream_handler(protocol, _ours)

    async def request(
        self, peer: str, protocol: str, payload: bytes, timeout_s: float, *addresses: str
    ) -> bytes:
        """Return the payload of the peer's reply frame; raises PeerError, within `timeout_s`."""
        addresses = addresses[:MAX_ADDRESSES]
        troubles: dict[str, Trouble] = {}
        asked: list[str] = []
        with trio.move_on_after(timeout_s) as scope:
            reply = await self._exchange(peer, protocol, payload, addresses, troubles, asked)
        if not scope.cancelled_caught:
            return reply
        if not asked:
            raise unreachable(peer, troubles, addresses, timeout_s)
        raise PeerError(
            f"{asked[0]} did not answer {protocol} within {timeout_s:g} s {_who(peer)}",
            hint="It is connected, but slow or stuck: try again, then look at that node's log.",
        )

    async def _exchange(
        self,
        peer: str,
        protocol: str,
        payload: bytes,
        addresses: Sequence[str],
        troubles: dict[str, Trouble],
        asked: list[str],
    ) -> bytes:
        """Send the request and return the reply. `asked` gets the address that it was sent to."""
        try:
            talk = await self._open(peer, protocol, addresses, troubles)
            async with streams.ending(talk):
                asked.append(_address(talk.stream))
                await talk.write(frames.encode_frame(payload))
                return await streams.read_frame(talk, frames.MAX_FRAME_BYTES)
        except PeerError:
            raise
        except streams.NotServedError:
            raise PeerError(
                f"the node does not answer {protocol} {_who(peer)}",
                hint="It may run another version of Covey, or lack this role.",
            ) from None
        except streams.StreamRefusedError:
            raise PeerError(
                f"the node takes no more requests from here now {_who(peer)}",
                hint="Try again in a few seconds.",
            ) from None
        except frames.FrameError as error:
            raise PeerError(
                f"the node's answer to {protocol} makes no sense: {error} {_who(peer)}",
                hint="It may run another version of Covey.",
            ) from None
        except Exception as error:
            log.debug("request failed, protocol=%s, peer=%s: %r", protocol, peer, error)
            raise PeerError(
                f"the connection broke before the node had answered {protocol} {_who(peer)}",
                hint="Try again; if it goes on, look at that node's log.",
            ) from None

    async def _open(
        self, peer: str, protocol: str, addresses: Sequence[str], troubles: dict[str, Trouble]
    ) -> streams.Talk:
        """Return a talk with the peer over the connection there is, or a new one if that is dead.

        Raises StreamRefusedError when the connection lives and the peer refused the stream.
        """
        kept = self._links.kept(peer)
        if kept is not None:
            left_s = trio.current_effective_deadline() - trio.current_time()
            with trio.move_on_after(min(REUSE_LIMIT_S, left_s / 2)):
                try:
                    return await streams.open_stream(kept, protocol)
                except (streams.NotServedError, streams.StreamRefusedError):
                    raise
                except Exception as error:
                    log.debug("the kept connection is dead, peer=%s: %r", peer, error)
            self._links.give_up(kept)
        connection = await self._links.connect(peer, addresses, troubles, other_than=kept)
        return await streams.open_stream(connection, protocol)

    # Answering.

    async def _take_stream(self, stream: Any) -> None:
        """Every inbound stream of every connection; must not raise, for that ends the swarm."""
        connection = id(stream.swarm_conn)
        self._streams[connection] += 1
        try:
            if self._streams[connection] > MAX_STREAMS_PER_CONNECTION:
                raise PeerError("too many streams on one connection")
            talk = streams.Talk(stream)
            protocol, handler = await self._host.get_mux().negotiate(
                MultiselectCommunicator(talk), REQUEST_LIMIT_S
            )
            talk.negotiated()
            stream.set_protocol(protocol)
            if handler is _ours:
                await self._answer(protocol, talk)
            elif talk.ahead:
                raise PeerError("more than was asked for after the negotiation")
            else:
                await handler(stream)
        except Exception as error:
            log.debug("inbound stream ended, peer=%s: %r", stream.muxed_conn.peer_id, error)
        finally:
            self._streams[connection] -= 1
            if not self._streams[connection]:
                del self._streams[connection]
            await streams.reset(stream)

    async def _answer(self, protocol: str, talk: streams.Talk) -> None:
        """One request: read it, have it handled on the asyncio side, send what comes back."""
        peer = str(NodeId.parse(str(talk.stream.muxed_conn.peer_id)))
        if self._requests >= MAX_REQUESTS:
            busy = PeerError("the node is busy", hint="Try again in a few seconds.")
            await talk.write(frames.encode_refusal(busy))
            await streams.linger(talk)
            return
        self._requests += 1
        try:
            with trio.fail_after(REQUEST_LIMIT_S):
                request = await streams.read_frame(talk, frames.MAX_PAYLOAD_BYTES)
            reply = await self._handle(protocol, peer, request, talk)
            if reply is None:
                return
            await talk.write(reply)
        finally:
            self._requests -= 1
        await streams.linger(talk)

    async def _handle(
        self, protocol: str, peer: str, request: bytes, talk: streams.Talk
    ) -> bytes | None:
        """Return the reply frame; None if the caller left meanwhile, which cancels the work."""
        reply: bytes | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await streams.until_left(talk)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            reply = await self._ask("answer", protocol, peer, request)
            nursery.cancel_scope.cancel()
        return reply


async def _ours(stream: Any) -> None:
    """Mark, in libp2p's table, the protocols that `Node._answer` answers."""
    await stream.reset()


def _who(peer: str) -> str:
    return f"(peer …{peer[-8:]})"


def _address(stream: Any) -> str:
    address = stream.muxed_conn.tcp.peer_address
    return endpoint.join(*address) if address else "the node"
