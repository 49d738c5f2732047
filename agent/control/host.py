"""`ControlPlane`: requests to other nodes and answers to theirs, for asyncio code (design §6).

Used by the daemon and its services. Not for data: a request or a reply holds at most 4 MiB, and a
connection carries some MiB/s. Everything here runs on the asyncio loop; libp2p is in the bridge's
thread and is imported when `start` is called.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from agent import endpoint
from agent.control import frames
from agent.control.bridge import BridgeClosed, Guest, GuestFault, TrioThread
from agent.errors import CoveyError, EnvironmentFault, NotRunning, PeerError, UsageError
from agent.identity.keys import NodeId, NodeKey

log = logging.getLogger(__name__)

NETWORK_KEY_BYTES = 32
# What a handler may take; a caller who leaves earlier cancels it earlier.
HANDLER_LIMIT_S = 60.0
# The trio side keeps a request's time itself; this much later something is wrong with that side.
BRIDGE_GRACE_S = 5.0
COMMAND_LIMIT_S = 5.0
MAX_PROTOCOL_CHARACTERS = 100

Handler = Callable[[NodeId, bytes], Awaitable[bytes]]


class ControlPlane:
    """One node's end of the control plane. One start, one stop."""

    def __init__(self, key: NodeKey, network_key: bytes | None, listen: Sequence[str]) -> None:
        """`network_key`: 32 bytes, shared by a mesh; peers with another one get no answer.

        `listen`: `HOST:PORT` each, port 0 for any; empty for a node that only dials. Raises
        UsageError for an address that is none, ValueError for a network key of another length.
        """
        if network_key is not None and len(network_key) != NETWORK_KEY_BYTES:
            raise ValueError(f"a network key holds {NETWORK_KEY_BYTES} bytes")
        for address in listen:
            endpoint.split(address, lowest_port=0)
        self._key = key
        self._network_key = network_key
        self._listen = tuple(listen)
        self._handlers: dict[str, Handler] = {}
        self._bridge = TrioThread("control plane", {"answer": self._answer})
        self._addresses: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        """Whether requests are possible: started, not stopped, and not ended by a fault."""
        return self._bridge.running

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses listened on, with the actual ports; empty before `start`."""
        return self._addresses

    async def start(self) -> None:
        """Import libp2p, listen, and return when ready.

        Raises EnvironmentFault if a port is in use, or if libp2p cannot start on this machine.
        """
        try:
            await self._bridge.start(
                partial(
                    _load,
                    seed=self._key.seed,
                    network_key=self._network_key,
                    listen=self._listen,
                    protocols=tuple(self._handlers),
                )
            )
            bound = await self._bridge.call("bound", timeout_s=COMMAND_LIMIT_S)
        except (GuestFault, BridgeClosed, TimeoutError) as error:
            await self._bridge.stop()
            raise EnvironmentFault(
                f"the control plane (libp2p) cannot start: {frames.one_line(str(error))}",
                hint="Install Covey's requirements anew; without it no node can join through here.",
            ) from None
        self._addresses = tuple(str(bound).split())
        log.info("control plane up, node=%s, listen=%s", self._key.id, bound or "nowhere")

    async def stop(self) -> None:
        """End requests (they raise NotRunning) and handlers, close connections, free the port.

        Takes 0.3 s as a rule and never more than some 10 s.
        """
        was_running = self.running
        await self._bridge.stop()
        if was_running:
            log.info("control plane down, node=%s", self._key.id)

    def serve(self, protocol: str, handler: Handler) -> None:
        """Answer `protocol` (a name like `/covey/join/1`) with `handler`, from now on.

        The handler runs on the asyncio loop. It gets the caller's proved identity and the request,
        and returns the answer (at most 4 MiB each). A CoveyError that it raises is raised at the
        caller; of any other exception the caller learns nothing. It is cancelled when the caller
        leaves, and after HANDLER_LIMIT_S.
        """
        _check_protocol(protocol)
        known = protocol in self._handlers
        self._handlers[protocol] = handler
        if not known:
            self._bridge.post("serve", protocol)

    async def connections(self) -> int:
        """Return how many connections are open, in both directions."""
        try:
            count = await self._bridge.call("connections", timeout_s=COMMAND_LIMIT_S)
        except (BridgeClosed, GuestFault, TimeoutError):
            return 0
        return count if isinstance(count, int) else 0

    async def request(
        self,
        peer: NodeId,
        addresses: Sequence[str],
        protocol: str,
        payload: bytes,
        *,
        timeout_s: float,
    ) -> bytes:
        """Send one request to `peer` and return its answer.

        An open connection to the peer is used, else `addresses` (HOST:PORT; names are resolved each
        time) are tried side by side, and the connection is kept. The request is delivered at most
        once. Raises, within `timeout_s`: PeerError if the peer cannot be reached, does not answer
        or answers nonsense; the CoveyError that its handler raised; NotRunning if this side is not
        up; UsageError for an address that is none; ValueError for a payload over 4 MiB.
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
                str(peer),
                protocol,
                payload,
                timeout_s,
                *dict.fromkeys(addresses),
                timeout_s=timeout_s + BRIDGE_GRACE_S,
            )
        except BridgeClosed:
            raise NotRunning(
                "the control plane is not running", hint="Start the agent with `agent up`."
            ) from None
        except (GuestFault, TimeoutError) as error:
            log.error("request failed inside the control plane, protocol=%s: %s", protocol, error)
            raise PeerError(
                f"the request failed on this side (peer …{peer.short})",
                hint="This is a fault of Covey; the log says more.",
            ) from None
        try:
            return frames.decode_reply(reply if isinstance(reply, bytes) else b"")
        except frames.FrameError as error:
            raise PeerError(
                f"the node's answer to {protocol} makes no sense: {error} (peer …{peer.short})",
                hint="It may run another version of Covey.",
            ) from None

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


def _load(
    bridge: TrioThread,
    *,
    seed: bytes,
    network_key: bytes | None,
    listen: Sequence[str],
    protocols: Sequence[str],
) -> Guest:
    # Here and not at the top: libp2p takes 1-2 s and 70 MB, and belongs into the bridge's thread.
    from agent.control.node import Node

    return Node(bridge, seed, network_key, listen, protocols)
