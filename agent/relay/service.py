"""The relay of a running node: answers members, owns ports, forwarding and the tunnel. A shell.

    relay = Relay(key, mesh_id, network_keys, interface, settings, health=health)
    await relay.start()                            # never fails for lack of nft or of port 443
    control.serve(messages.PROTOCOL, relay.answer)
    relay.set_members(…); relay.set_network_keys(…)    # whenever they change
    await relay.stop()                             # nothing is left

Used by the daemon of a node that may relay. The other half, a node that uses a relay, is
`client.py`, and `tunnelclient.py` where UDP is blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import Any

from agent.errors import EnvironmentFault
from agent.health import Health
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.relay import condition, messages
from agent.relay.allocation import Allocation, Allocations, Limits
from agent.relay.door import Door
from agent.relay.forwarding import Forwarding
from agent.relay.messages import Allocate, Allocated, Refresh, Release, Released
from agent.relay.pairs import PortTaken, Seat
from agent.relay.tunnelserver import DEFAULT_PORT, TunnelServer
from agent.relay.wire import PairSeal

_log = logging.getLogger(__name__)

# How often bytes are counted against quotas: at 1 Gbit/s a pair may overdraw by 125 MB.
TICK_S = 1.0
# Ports of others in a row before an asker is told that the relay is full.
_PORT_TRIES = 8
_SECRET_BYTES = 32
# The tunnel's port is tried again this often: whatever holds it may end.
TUNNEL_RETRY_S = 30.0
# That no ports could be had is forgotten after so long in which nobody asked for one.
NO_PORTS_S = 600.0


@dataclass(frozen=True)
class Settings:
    """What an operator can set. `tunnel_port` None opens no tunnel; `tunnel_host` None: any.

    `expected`: this node has the role relay, so that what it lacks for that is a fault.
    `kernel` False keeps forwarding in this process even where nftables could do it.
    """

    limits: Limits = field(default_factory=Limits)
    kernel: bool = True
    tunnel_port: int | None = DEFAULT_PORT
    tunnel_host: str | None = None
    expected: bool = False


class Relay:
    """Serves pairs of members. `answer` and the setters are called on the agent's loop."""

    def __init__(
        self,
        key: NodeKey,
        mesh_id: bytes,
        network_keys: NetworkKeys,
        interface: str,
        settings: Settings | None = None,
        *,
        health: Health | None = None,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        """`interface`: the overlay's, after which our nftables table is named.

        `health` gets to know what is wrong, and when it is right again.
        """
        self._key = key
        self._mesh_id = mesh_id
        self._keys = network_keys
        self._settings = settings or Settings()
        self._clock = clock
        limits = self._settings.limits
        self._allocations = Allocations(key.id, limits, random or SystemRandom())
        self._forwarding = Forwarding(
            interface, limits.ports, self._on_seat, kernel=self._settings.kernel
        )
        self._tunnels = TunnelServer(
            key, mesh_id, network_keys, self._tunnel_port_of, self._tunnel_seated, clock
        )
        self._health = health or Health()
        self._tunnel_fault: EnvironmentFault | None = None
        self._tunnel_at = float("inf")  # when to try again; monotonic, as all but `clock`
        self._ports_fault: EnvironmentFault | None = None
        self._ports_until = 0.0
        self._counted: dict[bytes, tuple[int, int]] = {}
        self._stirred = asyncio.Event()
        self._settling = asyncio.Lock()
        self._allocating = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start; what cannot be had (nftables, the tunnel's port) is said by `describe`."""
        await self._forwarding.start()
        await self._open_tunnel(time.monotonic())
        self._tell_health(time.monotonic())
        self._task = asyncio.create_task(self._run(), name="relay")

    async def stop(self) -> None:
        """Close every port and remove the nftables table."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._tunnels.stop()
        async with self._settling:
            await self._forwarding.stop()

    # ------------------------------------------------------- from the daemon

    def set_members(self, members: Iterable[NodeId]) -> None:
        """Replace who is a member; the pairs of those who are none any more end at once."""
        self._allocations.set_members(members)
        self._stirred.set()

    def set_network_keys(self, keys: NetworkKeys) -> None:
        """Replace the network keys; pairs go on, and their doors take the new keys."""
        self._keys = keys
        self._tunnels.set_network_keys(keys)
        for allocation in self._allocations.all():
            for side, node in enumerate(allocation.nodes):
                self._forwarding.set_seal(allocation.id, side, self._seal(node))

    async def answer(self, node: NodeId, payload: bytes) -> bytes:
        """Answer a verified member's request. Raises CoveyError, for the control plane to carry."""
        request = messages.decode_request(payload)
        now = self._clock()
        match request:
            case Allocate():
                return self._granted(node, await self._allocate(node, NodeId(request.peer)), now)
            case Refresh():
                return self._granted(node, self._allocations.refresh(node, request.id, now), now)
            case Release():
                self._allocations.release(node, request.id)
                self._stirred.set()
                return messages.encode(Released())

    def describe(self) -> dict[str, Any]:
        """Describe the relay for status: how it forwards and why so, its pairs, its tunnel."""
        limits, now = self._settings.limits, self._clock()
        return {
            "forwarding": "userspace" if self._forwarding.reason else "kernel",
            "reason": self._forwarding.reason or None,
            "ports": f"{limits.ports[0]}-{limits.ports[-1]}",
            "rate_bytes_s": limits.rate_bytes_s,
            "tunnel_port": self._tunnels.port,
            "tunnel_fault": self._tunnel_fault.line() if self._tunnel_fault is not None else None,
            "tunnels": len(self._tunnels),
            "sent_bytes": self._allocations.sent_bytes,
            "pairs": [
                {
                    "id": each.id.hex(),
                    "nodes": [str(node) for node in each.nodes],
                    "ports": list(each.pair.ports),
                    "open": [seat is not None for seat in each.seats],
                    "forwarding": (
                        "kernel" if self._forwarding.in_kernel(each.id) else "userspace"
                    ),
                    "sent_bytes": list(each.sent),
                    "left_bytes": self._allocations.left_bytes(each, now),
                    "expires_in_s": round(max(0.0, each.expires_at - now), 1),
                }
                for each in self._allocations.all()
            ],
        }

    # ------------------------------------------------------------------ inside

    async def _open_tunnel(self, now: float) -> None:
        if self._settings.tunnel_port is None:
            return
        self._tunnel_at = float("inf")
        try:
            await self._tunnels.start(self._settings.tunnel_host, self._settings.tunnel_port)
        except EnvironmentFault as fault:
            if self._tunnel_fault is None or self._tunnel_fault.message != fault.message:
                _log.warning("relay without a tunnel: %s", fault.line())
            self._tunnel_fault, self._tunnel_at = fault, now + TUNNEL_RETRY_S
        else:
            self._tunnel_fault = None

    def _tell_health(self, now: float) -> None:
        if now >= self._ports_until:
            self._ports_fault = None
        found = condition.faults(
            self._forwarding.fault, self._tunnel_fault, self._ports_fault,
            expected=self._settings.expected,
        )  # fmt: skip
        for code in set(condition.CODES) - {item.code for item in found}:
            self._health.clear(code)
        for item in found:
            self._health.set(item)

    async def _allocate(self, asker: NodeId, peer: NodeId) -> Allocation:
        async with self._allocating:  # else a pair could be answered before its ports are open
            for tries in range(_PORT_TRIES):
                try:
                    made = self._allocations.allocate(asker, peer, self._clock())
                except EnvironmentFault:
                    if tries:
                        break  # the last ones were found to be others'
                    raise
                if made.id in self._counted:
                    return made
                await self._remove_gone()  # ports that were taken from others are closed first
                self._counted[made.id] = (0, 0)  # from here on, who removes it closes its ports
                try:
                    await self._forwarding.add(made.pair, self._doors(made))
                except PortTaken as taken:
                    _log.warning("%s", taken.line())
                    self._counted.pop(made.id, None)
                    if self._allocations.get(made.id) is made:
                        self._allocations.unusable(made, taken.port, self._clock())
                    continue
                except BaseException:
                    self._counted.pop(made.id, None)
                    if self._allocations.get(made.id) is made:
                        self._allocations.release(asker, made.id)
                    raise
                if self._allocations.get(made.id) is not made:
                    continue  # removed meanwhile: the next try says why
                self._ports_fault = None
                _log.info("relay pair id=%s nodes=%s ports=%s", made.id.hex(),
                          " ".join(map(str, made.nodes)), made.pair.ports)  # fmt: skip
                return made
        self._ports_until = time.monotonic() + NO_PORTS_S
        self._ports_fault = EnvironmentFault(
            "other programs hold this relay's ports",
            hint="Give it another range of ports (network.relay_ports).",
        )
        raise self._ports_fault

    def _granted(self, asker: NodeId, found: Allocation, now: float) -> bytes:
        side = found.side(asker)
        return messages.encode(
            Allocated(
                found.id, found.pair.ports[side], found.pair.ports[1 - side],
                max(0.0, found.expires_at - now), self._allocations.left_bytes(found, now),
                self._tunnels.port,
            )
        )  # fmt: skip

    def _doors(self, made: Allocation) -> tuple[Door, Door]:
        first, second = (
            Door(made.id, self._seal(node), os.urandom(_SECRET_BYTES)) for node in made.nodes
        )
        return first, second

    def _seal(self, node: NodeId) -> PairSeal:
        return PairSeal(self._key, node, self._mesh_id, self._keys)

    def _on_seat(self, identity: bytes, side: int, seat: Seat) -> None:
        found = self._allocations.seat(identity, side, seat, self._clock())
        if found is not None:
            _log.info("relay seat id=%s node=%s place=%s", identity.hex(), found.nodes[side],
                      seat.place)  # fmt: skip
            self._stirred.set()

    def _tunnel_port_of(self, node: NodeId, identity: bytes) -> int | None:
        found = self._allocations.get(identity)
        if found is None or node not in found.nodes or identity not in self._counted:
            return None
        return found.pair.ports[found.side(node)]

    async def _tunnel_seated(self, node: NodeId, identity: bytes, port: int) -> None:
        found = self._allocations.get(identity)
        if found is not None:
            seat = Seat(("127.0.0.1", port), "127.0.0.1", "lo")
            await self._forwarding.place(identity, found.side(node), seat)

    async def _run(self) -> None:
        """Follow time, seats and members: at once when stirred, else each TICK_S."""
        counted_at = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._stirred.wait()
            self._stirred.clear()
            try:
                now = time.monotonic()
                if now >= self._tunnel_at:
                    await self._open_tunnel(now)
                if now >= counted_at + TICK_S:
                    counted_at = now
                    await self._count()
                self._allocations.expire(self._clock())
                await self._remove_gone()
                async with self._settling:
                    await self._forwarding.settle(self._allocations.all(), now)
            except (EnvironmentFault, TimeoutError) as fault:
                _log.warning("relay: %s", fault)
            except Exception:  # what is not refreshed must end, whatever else goes wrong
                _log.exception("the relay's round failed")
            self._tell_health(time.monotonic())

    async def _count(self) -> None:
        for identity, sent in (await self._forwarding.counts(time.monotonic())).items():
            before = self._counted.get(identity)
            if before is not None:
                self._counted[identity] = sent
                more = (max(0, sent[0] - before[0]), max(0, sent[1] - before[1]))
                self._allocations.count(identity, more, self._clock())

    async def _remove_gone(self) -> None:
        """Close the ports of what was removed; nothing of it is forwarded from then on."""
        for removed in self._allocations.take_removed():
            identity = removed.allocation.id
            if self._counted.pop(identity, None) is None:
                continue
            self._tunnels.close(identity)
            await self._forwarding.remove(identity)
            _log.info("relay pair gone id=%s: %s", identity.hex(), removed.reason)
