"""Ownership on the wire: UDP between overlay addresses, so WireGuard says who speaks.

A thin shell around `owner.py`: it owns the socket, the timer, and the file with the epochs that may
have been used. Time is CLOCK_BOOTTIME, which goes on while the machine sleeps: a lease must not
outlive its grantor's because this machine was suspended. While nothing is deployed, nothing is sent
and no timer runs. Used by `agent.deploy.deployments`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from agent.errors import EnvironmentFault, PeerError, StateError
from agent.identity import privatefile
from agent.identity.keys import NodeId
from agent.membership.store import Member
from agent.ownership import messages
from agent.ownership.lease import MAX_EPOCH, Token
from agent.ownership.owner import Holding, Ownership, Report, Send, View, Want
from agent.unreadable import UNREADABLE

_log = logging.getLogger(__name__)

FILE = "epochs.json"
_VERSION = 1
# So many grants before the file is written again; each restart skips what is left of them.
_BLOCK = 1000
_LOW = 100
# Several ticks in a burst of messages say nothing that one does not.
_LEAST_PAUSE_S = 0.01
_CLOSE_TIMEOUT_S = 1.0


class Members(Protocol):
    """What ownership needs to know of the mesh."""

    def live_workers(self, now: float) -> Sequence[Member]:
        """Return the workers that are there at `now` (unix seconds), this node too if it is one."""

    def members(self, now: float) -> Sequence[Member]:
        """Return all valid members, there or not."""

    def draining(self) -> frozenset[NodeId]:
        """Return the members that are to run nothing, this node too if it is."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    reserved: int


class OwnershipService(asyncio.DatagramProtocol):
    """This node's part in who owns which deployment. All methods belong to the asyncio loop."""

    def __init__(
        self, own: NodeId, state_dir: Path, members: Members, *,
        wants: Callable[[], Mapping[str, Want]], running: Callable[[], Mapping[str, Report]],
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        """`changed` is called when the leases of this node, or the rings behind them, changed."""
        self._own = own
        self._path = state_dir / FILE
        self._members = members
        self._wants = wants
        self._running = running
        self._changed = changed
        self._core: Ownership | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = asyncio.Event()
        self._port = 0
        self._nodes: dict[str, NodeId] = {}
        self._addresses: dict[NodeId, str] = {}
        self._learnt_at = float("-inf")
        self._owned: dict[str, tuple[Holding, ...]] = {}

    # ------------------------------------------------------------------ life

    async def start(self, host: str, port: int) -> None:
        """Listen on the overlay address `host`, and begin.

        Raises EnvironmentFault when the port is taken, StateError for a damaged file of epochs.
        """
        floor = self._read()
        limit = min(floor + _BLOCK, MAX_EPOCH)
        self._write(limit)
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: self, local_addr=(host, port)
            )
        except OSError as error:
            raise EnvironmentFault(
                f"UDP port {port} on the overlay address {host} cannot be used: {error.strerror}",
                hint="Set network.beat_port to a free one, the same on every node.",
            ) from None
        self._closed.clear()
        self._port = port
        self._core = Ownership(self._own, _now(), floor=floor, limit=limit)
        self.kick()

    async def stop(self) -> None:
        """Give back what this node holds, and stop to listen."""
        if self._core is not None:
            self._send(self._core.resign())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._core = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await self._closed.wait()

    # ------------------------------------------------------------------ asking

    def owned(self) -> dict[str, tuple[Holding, ...]]:
        """Return the leases on which this node may act now, by deployment."""
        return self._core.owned(_now()) if self._core else {}

    def admits(self, name: str, token: Token) -> bool:
        """Say whether a command for a ring whose head is here is to be obeyed."""
        return self._core is not None and self._core.leases.admits(name, token)

    def view(self, name: str) -> View:
        """Return what this node knows of a deployment's owner without asking anyone."""
        return self._core.view(name, _now()) if self._core else View()

    def first(self, name: str) -> NodeId | None:
        """Return who comes first for a deployment among the workers that are there."""
        return self._core.first(name, _now()) if self._core else None

    # ------------------------------------------------------------------ telling

    def kick(self) -> None:
        """Say that the wishes, the rings here, or who is there have changed."""
        self._arm(0.0)

    def suspect(self, node: NodeId) -> None:
        """Say that a node may have died: its link was lost, or presence suspects it."""
        if self._core is not None and node != self._own:
            self._core.suspect(node, _now())
            self.kick()

    def trust(self, node: NodeId) -> None:
        """Say that a node is there (again)."""
        if self._core is not None and node != self._own:
            self._core.trust(node)
            self.kick()

    # ------------------------------------------------------------------ asyncio's side

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the socket is closed."""
        self._closed.set()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Take in a datagram of a worker; anything else is dropped without an answer."""
        core = self._core
        peer = self._node_at(addr[0])
        if core is None or peer is None or peer == self._own or addr[1] != self._port:
            return
        try:
            items = messages.decode(data)
        except PeerError as error:
            _log.debug("node=%s %s", peer, error.message)
            return
        self._send(core.on_message(peer, items, _now()))
        self._settle(core)

    def error_received(self, exc: Exception) -> None:
        """Note what the socket reports; lost datagrams are sent again anyway."""
        _log.debug("beats: %r", exc)

    # ------------------------------------------------------------------ inside

    def _tick(self) -> None:
        core = self._core
        if core is None:
            return
        self._timer = None
        self._learn()
        live = [member.node_id for member in self._members.live_workers(time.time())]
        draining = self._members.draining()
        self._send(core.tick(_now(), live, self._wants(), self._running(), draining))
        self._settle(core)

    def _settle(self, core: Ownership) -> None:
        """Note what changed, and set the timer."""
        if core.leases.limit - core.leases.highest < _LOW:
            self._extend(core)
        owned = core.owned(_now())
        if owned != self._owned:
            for name in owned.keys() ^ self._owned.keys():
                _log.info("ownership deployment=%s %s", name,
                          f"epoch={owned[name][0].token.epoch} taken" if name in owned
                          else "ended")  # fmt: skip
            self._owned = owned
            self._changed()
        if core.wake != float("inf"):
            self._arm(core.wake - _now())

    def _arm(self, delay_s: float) -> None:
        """Tick after `delay_s`, or before if that was set already."""
        loop = asyncio.get_running_loop()
        at = loop.time() + max(_LEAST_PAUSE_S, delay_s)
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        if self._core is not None:
            self._timer = loop.call_at(at, self._tick)

    def _send(self, sends: list[Send]) -> None:
        for send in sends:
            address = self._addresses.get(send.to)
            if address is None or self._transport is None:
                continue
            for datagram in messages.encode(send.items):
                self._transport.sendto(datagram, (address, self._port))

    def _node_at(self, address: str) -> NodeId | None:
        if address not in self._nodes:
            self._learn()
        return self._nodes.get(address)

    def _learn(self) -> None:
        """Take in who is a worker; once a second at most, also for strangers' packets."""
        now = _now()
        if now - self._learnt_at >= 1.0:
            self._learnt_at = now
            self._addresses = {
                member.node_id: str(member.certificate.ipv6)
                for member in self._members.members(time.time())
                if "worker" in member.certificate.roles
            }
            self._nodes = {address: node for node, address in self._addresses.items()}

    def _extend(self, core: Ownership) -> None:
        limit = min(core.leases.highest + _BLOCK, MAX_EPOCH)
        try:
            self._write(limit)
            core.leases.limit = limit
        except StateError as error:
            _log.error("%s", error.line())

    def _read(self) -> int:
        raw = privatefile.read(self._path, "file of epochs")
        if raw is None:
            return 0
        try:
            file = msgspec.json.decode(raw, type=_File)
        except UNREADABLE as error:
            raise StateError(
                f"{self._path} is damaged: {error}",
                hint="Move it away; owners then count on from what they have seen.",
            ) from None
        if file.version != _VERSION or not 0 <= file.reserved <= MAX_EPOCH:
            raise StateError(
                f"{self._path} has format {file.version}, and this agent knows {_VERSION}",
                hint="Update Covey on this node; nothing was changed.",
            )
        return file.reserved

    def _write(self, reserved: int) -> None:
        privatefile.replace(self._path, msgspec.json.encode(_File(_VERSION, reserved)) + b"\n")


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
