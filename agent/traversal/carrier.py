"""Brings signals to a peer that no packet reaches yet, over the control plane. A shell.

A request, where the peer can be asked: it is linked, or others reach it from outside. Else gossip:
every member passes the signal on and the one that it names takes it. That too when the request is
not answered soon: the link may go over the very path that has just died. Signals are sealed for
their peer, so that nobody on the way reads them (agent/paths/wire.py). Both may lose one; the
engine repeats what is not acknowledged, and takes each once.

What goes by gossip costs every member, so that all together say no more than they can bear: who
looks for many at once says the first at once, and is held back then. Without that, busy machines
take late answers for lost ones, look for ways by gossip, and are busier (docs/design-notes.md).
Members of whom nothing was heard yet have an allowance of their own: many are switched off, and who
calls them all at its start must still have words for the one that is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from agent.control.gossip import ADDRESSED
from agent.errors import CoveyError, PeerError
from agent.identity.keys import NodeId
from agent.paths.allowance import Allowance
from agent.paths.wire import SIGNAL_MAX_BYTES

_log = logging.getLogger(__name__)

PROTOCOL = "/covey/paths/1"
TOPIC = f"{ADDRESSED}signals"
# A signal is repeated after 0.4 s; a request that takes longer is of no use.
_REQUEST_LIMIT_S = 2.0
# Most round trips are shorter, and TCP's repetition 1.4 s after a loss is not missed for it.
_HEDGE_S = 0.3
# The same where packets to the peer are lost just now: a link in one country answers within it.
_DOUBTFUL_HEDGE_S = 0.06
# After a request that failed the peer gets its signals by gossip for so long.
_GOSSIP_S = 30.0
# All members together gossip so many signals a second, each one so many at once, and no member is
# held back to less than one in ten seconds.
_GOSSIP_PER_S, GOSSIP_BURST, _GOSSIP_PER_S_MIN = 10.0, 32.0, 0.1
_KEY_BYTES = 32
# Signals under way at once; a mesh of 1,000 that comes up has some tens.
_UNDER_WAY_MAX = 256


class Control(Protocol):
    """What is needed of the control plane."""

    def serve(self, protocol: str, handler: Callable[[NodeId, bytes], Awaitable[bytes]]) -> None:
        """Answer a protocol."""

    def subscribe(self, topic: str, handler: Callable[[NodeId, bytes], Awaitable[bool]]) -> None:
        """Hear a topic."""

    async def request(
        self, peer: NodeId, addresses: Sequence[str], protocol: str, payload: bytes, *,
        timeout_s: float,
    ) -> bytes:  # fmt: skip
        """Ask a member."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Tell every member."""


class Carrier:
    """Carries this node's signals, and gives `take` those for it: (who brought it, bytes)."""

    def __init__(
        self,
        control: Control,
        addresses: Callable[[NodeId], Sequence[str] | None],
        take: Callable[[NodeId, bytes], None],
    ) -> None:
        """`addresses`: a peer's control addresses; None when it is not to be asked directly."""
        self._control = control
        self._addresses = addresses
        self._take = take
        self._gossip_until: dict[NodeId, float] = {}
        self._allowance = Allowance(_GOSSIP_PER_S, GOSSIP_BURST)
        self._unheard = Allowance(_GOSSIP_PER_S, GOSSIP_BURST)
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        """Hear signals from now on."""
        self._control.serve(PROTOCOL, self._on_request)
        self._control.subscribe(TOPIC, self._on_gossip)

    def send(
        self, peer: NodeId, sealed: bytes, *, doubtful: bool = False, unheard: bool = False
    ) -> None:
        """Send a signal; it may be lost.

        `doubtful`: the link to the peer may be dead. `unheard`: the peer may not be there.
        """
        if len(self._tasks) >= _UNDER_WAY_MAX:
            return
        task = asyncio.get_running_loop().create_task(
            self._send(
                peer,
                sealed,
                _DOUBTFUL_HEDGE_S if doubtful else _HEDGE_S,
                self._unheard if unheard else self._allowance,
            )
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def set_members(self, members: frozenset[NodeId]) -> None:
        """Say who the other members are; nothing of others is kept."""
        per_s = max(_GOSSIP_PER_S / (len(members) + 1), _GOSSIP_PER_S_MIN)
        self._allowance.per_s = self._unheard.per_s = per_s
        for node in self._gossip_until.keys() - members:
            del self._gossip_until[node]

    async def stop(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _send(
        self, peer: NodeId, sealed: bytes, hedge_s: float, allowance: Allowance
    ) -> None:
        now = asyncio.get_running_loop().time()
        addresses = self._addresses(peer) if now >= self._gossip_until.get(peer, 0.0) else None
        if addresses is None:
            await self._tell_all(peer, sealed, allowance)
            return
        request = asyncio.create_task(self._request(peer, addresses, sealed))
        try:
            done, _ = await asyncio.wait({request}, timeout=hedge_s)
            if not done or not request.result():
                await self._tell_all(peer, sealed, allowance)
            if not await request:
                self._gossip_until[peer] = now + _GOSSIP_S
        finally:
            request.cancel()

    async def _request(self, peer: NodeId, addresses: Sequence[str], sealed: bytes) -> bool:
        try:
            await self._control.request(
                peer, addresses, PROTOCOL, sealed, timeout_s=_REQUEST_LIMIT_S
            )
        except CoveyError as error:
            _log.debug("signal not delivered node=%s: %s", peer, error.line())
            return False
        return True

    async def _tell_all(self, peer: NodeId, sealed: bytes, allowance: Allowance) -> None:
        if not allowance.take(asyncio.get_running_loop().time()):
            _log.debug("no signal node=%s: too many by gossip", peer)
            return
        try:
            await self._control.publish(TOPIC, peer.ed25519 + sealed)
        except CoveyError as error:
            allowance.give_back()  # nobody heard it
            _log.debug("no signal node=%s: %s", peer, error.line())

    async def _on_request(self, peer: NodeId, payload: bytes) -> bytes:
        if len(payload) > SIGNAL_MAX_BYTES:
            raise PeerError("a signal is too long")
        self._take(peer, payload)
        return b""

    async def _on_gossip(self, author: NodeId, payload: bytes) -> bool:
        if not _KEY_BYTES < len(payload) <= _KEY_BYTES + SIGNAL_MAX_BYTES:
            return False
        self._take(author, payload[_KEY_BYTES:])
        return True
