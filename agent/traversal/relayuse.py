"""This node's allocations on relays, one for each pair and relay: asked for, opened, kept. A shell.

Drives `relay/client.py`, which decides, with the control plane and WireGuard's port, and
`relay/tunnelclient.py` where UDP is blocked. Used by `service.py`, which tells the path engine what
came of it. Unix time inside, as relays count it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import SystemRandom

from agent.errors import CoveyError, PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.paths.messages import Place, RelayOffer, pack
from agent.relay import client
from agent.relay.client import RelayClient
from agent.relay.messages import Allocated
from agent.relay.tunnelclient import TunnelClient
from agent.relay.wire import PairSeal
from agent.traversal.relayticket import RelayTicket

_log = logging.getLogger(__name__)

_ASK_LIMIT_S = 5.0
# A joiner does not refresh: who allocated does. It believes in its ports while they answer.
_JOINED_S = 3600.0

Ask = Callable[[NodeId, bytes], Awaitable[bytes]]
"""Sends a request to a relay over the control plane and returns its answer; raises CoveyError."""


@dataclass
class Listener:
    """What is told: a place for (peer, relay) with what the peer is offered, or that it failed."""

    opened: Callable[[NodeId, NodeId, Place, RelayOffer | None], None]
    failed: Callable[[NodeId, NodeId], None]


class RelayUse:
    """All of one node's pairs on relays."""

    def __init__(
        self,
        key: NodeKey,
        mesh_id: bytes,
        keys: NetworkKeys,
        wireguard_port: int,
        ask: Ask,
        send: Callable[[Place, bytes], None],
        host_of: Callable[[NodeId], str | None],
        listener: Listener,
    ) -> None:
        """`send` sends from WireGuard's port; `host_of` is a relay's address for us, if any."""
        self._key = key
        self._mesh_id = mesh_id
        self._keys = keys
        self._port = wireguard_port
        self._ask = ask
        self._send = send
        self._host_of = host_of
        self._listener = listener
        self._random = SystemRandom()
        self._uses: dict[tuple[NodeId, NodeId], _Use] = {}

    def set_network_keys(self, keys: NetworkKeys) -> None:
        """Use other network keys for what is opened from now on."""
        self._keys = keys

    def open(self, peer: NodeId, relay: NodeId, *, tunnel: bool, ticket: bytes | None) -> None:
        """Get a place on a relay: a new allocation, or the one that a ticket names."""
        before = self._uses.pop((peer, relay), None)
        if before is not None:
            # Not given back: a relay has one allocation for the pair, which is asked for again.
            before.end(give_back=False)
        host = self._host_of(relay)
        if host is None:
            self._listener.failed(peer, relay)
            return
        use = self._uses[peer, relay] = _Use(self, peer, relay, host, tunnel)
        try:
            use.begin(ticket)
        except CoveyError as error:
            _log.info("relay not used relay=%s: %s", relay, error.line())
            self.close(peer, relay)
            self._listener.failed(peer, relay)

    def close(self, peer: NodeId, relay: NodeId) -> None:
        """Give the place back; nothing happens if there is none."""
        use = self._uses.pop((peer, relay), None)
        if use is not None:
            use.end()

    def received(self, place: Place, datagram: bytes) -> bool:
        """Take a datagram that came to WireGuard's port; say whether a relay sent it to us."""
        return any(use.received(place, datagram) for use in tuple(self._uses.values()))

    def network_changed(self) -> None:
        """Prove our places anew: they may be others."""
        for use in tuple(self._uses.values()):
            use.reopen()

    async def stop(self) -> None:
        """Give everything back; waits for the relays' answers, but not for long."""
        uses = list(self._uses.values())
        self._uses.clear()
        for use in uses:
            use.end()
        tasks = [task for use in uses for task in use.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
            for task in tasks:
                task.cancel()


class _Use:
    """One pair on one relay."""

    def __init__(
        self, owner: RelayUse, peer: NodeId, relay: NodeId, host: str, tunnel: bool
    ) -> None:
        self._owner = owner
        self._peer = peer
        self._relay = relay
        self._host = host
        self._tunnel = tunnel
        self._own = True  # we allocated it, so the peer is offered its part
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._tunnelling: asyncio.Task[None] | None = None
        self._endpoint: Place | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        seal = PairSeal(owner._key, relay, owner._mesh_id, owner._keys)
        self._client = RelayClient(peer, host, seal, owner._random, time.time(), tunnelled=tunnel)

    def begin(self, ticket: bytes | None) -> None:
        if ticket:
            found = RelayTicket.decode(ticket)
            self._own = False
            self._client.take()  # what it would have asked
            self._client.joined(
                Allocated(found.allocation, found.port, found.port, _JOINED_S, 0,
                          found.tunnel_port),
                time.time(),
            )  # fmt: skip
        self._after()

    def received(self, place: Place, datagram: bytes) -> bool:
        taken = self._client.received(datagram, place, time.time())
        if taken:
            self._after()
        return taken

    def reopen(self) -> None:
        self._client.reopen(time.time())
        self._after()

    def end(self, *, give_back: bool = True) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._tunnelling is not None:
            self._tunnelling.cancel()
        if self._own and give_back:
            self._client.close()
            for output in self._client.take():
                if isinstance(output, client.Ask):
                    self._spawn(self._request(output.request))

    def _after(self) -> None:
        """Carry out what the client wants, and come back when it wants to."""
        for output in self._client.take():
            match output:
                case client.Ask():
                    if self._own:
                        self._spawn(self._request(output.request))
                case client.Send():
                    self._owner._send(output.to, output.datagram)
                case client.Ready():
                    self._ready(output.endpoint)
                case client.Lost():
                    self._lost(output.reason)
        allocated = self._client.allocated
        if self._tunnel and allocated is not None and self._tunnelling is None and not self._ended:
            self._begin_tunnel(allocated)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wakes_at = self._client.wakes_at
        if wakes_at is not None and not self._ended:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, wakes_at - time.time()), self._tick)

    def _tick(self) -> None:
        self._client.tick(time.time())
        self._after()

    async def _request(self, request: bytes) -> None:
        try:
            answer = await self._owner._ask(self._relay, request)
        except CoveyError as error:
            final = not isinstance(error, PeerError)
            self._client.refused(error.message, final=final, now=time.time())
        else:
            if not self._ended:
                self._client.answered(answer, time.time())
        if not self._ended:
            self._after()

    def _ready(self, endpoint: Place) -> None:
        if self._ended or self._endpoint == endpoint:
            return
        self._endpoint = endpoint
        self._owner._listener.opened(self._peer, self._relay, endpoint, self._offer())

    def _offer(self) -> RelayOffer | None:
        """Return what the peer has to know to join; None if it told us."""
        allocated = self._client.allocated
        if not self._own or allocated is None:
            return None
        port = allocated.peer_port
        ticket = RelayTicket(allocated.id, port, allocated.tunnel_port)
        return RelayOffer(self._relay.ed25519, pack((self._host, port)), ticket.encode())

    def _lost(self, reason: str) -> None:
        _log.info("relay lost relay=%s peer=%s: %s", self._relay, self._peer, reason)
        self._fail()

    def _fail(self) -> None:
        if not self._ended:
            self._owner.close(self._peer, self._relay)
            self._owner._listener.failed(self._peer, self._relay)

    # ---------------------------------------------------------------- tunnel

    def _begin_tunnel(self, allocated: Allocated) -> None:
        owner = self._owner
        if allocated.tunnel_port is None:
            self._lost("it has no tunnel")
            return
        try:
            tunnel = TunnelClient(
                owner._key, owner._mesh_id, owner._keys, self._relay,
                (self._host, allocated.tunnel_port), allocated.id, owner._port,
                lambda reason: self._tunnel_changed(tunnel, reason),
            )  # fmt: skip
        except OSError as error:
            self._lost(f"no tunnel here: {error.strerror}")
            return
        self._tunnelling = asyncio.get_running_loop().create_task(tunnel.run(), name="tunnel")
        self.tasks.add(self._tunnelling)
        self._tunnelling.add_done_callback(self.tasks.discard)

    def _tunnel_changed(self, tunnel: TunnelClient, reason: str | None) -> None:
        if self._ended:
            return
        if reason is None:
            self._ready(tunnel.endpoint)
        else:
            _log.info("relay tunnel lost relay=%s peer=%s: %s", self._relay, self._peer, reason)
            self._fail()

    def _spawn(self, work: Awaitable[None]) -> None:
        async def quietly() -> None:
            with contextlib.suppress(CoveyError):
                await work

        task = asyncio.get_running_loop().create_task(quietly())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
