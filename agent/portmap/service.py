"""Keeps WireGuard's port mapped at the home router: the shell that the daemon starts.

    mapper = PortMapper(51820, secret, on_change=candidates.port_mapping)
    await mapper.start()
    …
    await mapper.stop()     # nothing stays mapped

It asks the machine's default gateways, IPv4 only, and nobody else, and maps to this machine only.
Everything that is decided is decided in `contest.py` and `way.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from random import Random, SystemRandom

import msgspec

from agent.portmap import igd, natpmp, pcp, words
from agent.portmap.contest import PROBE_INTERVAL_S, Contest
from agent.portmap.igd import Igd
from agent.portmap.routes import Gateway, default_gateways
from agent.portmap.way import CHECK_S, LIFETIME_S, RELEASE_WAITS_S, Pace, State, Way
from agent.portmap.wire import Announcements, Wire
from agent.portmap.words import NATPMP, PCP, UPNP, Answer, Mapping

_log = logging.getLogger(__name__)

# A network change comes as several events.
_SETTLE_S = 0.2
# NAT-PMP and PCP give up a release after 1.5 s. UPnP may first have to finish an order.
STOP_S = 14.0
_TASK_STOP_S = 1.0

OnChange = Callable[[Mapping | None], None]
ListGateways = Callable[[str], Awaitable[list[Gateway]]]


class Attempt(msgspec.Struct, frozen=True):
    """One protocol at one gateway: its state (see `way.py`) and why it is not in use."""

    gateway: str
    protocol: str
    state: str
    why: str

    def text(self) -> str:
        """Return it as a person reads it."""
        return f"{self.protocol} at {self.gateway}: {self.why or self.state}"


class PortMappingReport(msgspec.Struct, frozen=True):
    """What `agent netcheck` and `agent status` show of port mapping."""

    enabled: bool
    mapping: Mapping | None
    attempts: list[Attempt]
    summary: str


@dataclass
class _Branch:
    """A way and what carries its requests."""

    gateway: Gateway
    way: Way
    carrier: Wire | Igd


class PortMapper:
    """Maps `internal_port` (UDP) from outside, if any gateway of this machine lets it.

    `secret` (16 to 64 bytes, the same after a restart) makes PCP mappings ours. `on_change` is
    called on the loop with each new mapping, and with None when there is none any more.
    """

    def __init__(
        self,
        internal_port: int,
        secret: bytes,
        on_change: OnChange,
        *,
        enabled: bool = True,
        protocols: Iterable[str] = (PCP, NATPMP, UPNP),
        excluded_interface: str = "",
        list_gateways: ListGateways = default_gateways,
        check_s: float = CHECK_S,
        lifetime_s: int = LIFETIME_S,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._port, self._secret = internal_port, secret
        self._on_change = on_change
        self._enabled, self._protocols = enabled, tuple(protocols)
        self._excluded_interface, self._list_gateways = excluded_interface, list_gateways
        self._check_s, self._lifetime_s = check_s, lifetime_s
        self._rng = rng or SystemRandom()
        self._clock = clock
        self._contest = Contest((), self._rng)
        self._branches: list[_Branch] = []
        self._leaving: list[_Branch] = []
        self._announcements = Announcements(self._announced)
        self._wake = asyncio.Event()
        self._list_at = -math.inf
        self._changed = False
        self._told: Mapping | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def mapping(self) -> Mapping | None:
        """The mapping that there is now."""
        held = self._contest.held
        return held.mapping if held is not None else None

    async def start(self) -> None:
        """Begin; returns at once."""
        if self._enabled and self._task is None:
            self._announcements.start()
            self._task = asyncio.create_task(self._run(), name="port mapping")
            self._task.add_done_callback(_log_unless_cancelled)

    async def stop(self) -> None:
        """End, and take back what is mapped where the gateway answers; may be called twice."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task], timeout=_TASK_STOP_S)
        self._announcements.stop()
        self._leave(self._branches)
        self._branches = []
        self._contest.replace((), self._clock())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                while self._leaving:
                    self._wake.clear()
                    self._tick_leaving()
                    if self._leaving:
                        await self._sleep(min(branch.way.timer() for branch in self._leaving))
        for branch in self._leaving:
            branch.carrier.close()
        for branch in self._leaving:
            if isinstance(branch.carrier, Igd):
                await branch.carrier.ended()
        self._leaving = []
        self._tell()

    def network_changed(self) -> None:
        """Look at routes, gateways and what is mapped anew, soon; cheap to call often."""
        self._changed = True
        self._list_at = -math.inf
        self._wake.set()

    def describe(self) -> PortMappingReport:
        """Return what was tried, what answered, and why not."""
        attempts = [
            Attempt(branch.way.gateway, branch.way.protocol, branch.way.state.value, branch.way.why)
            for branch in self._branches
        ]
        return PortMappingReport(self._enabled, self.mapping, attempts, self._summary())

    def _summary(self) -> str:
        if not self._enabled:
            return "port mapping is switched off (network.port_mapping)"
        if self.mapping is not None:
            return f"mapped to {self.mapping.text()}"
        if not self._branches:
            return "no IPv4 default gateway is known to ask"
        if any(b.way.state in {State.PROBING, State.READY, State.ASKING} for b in self._branches):
            return "asking the gateway"
        return "no gateway maps ports for us"

    # The loop.

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            if self._changed:
                await asyncio.sleep(_SETTLE_S)
            if self._clock() >= self._list_at:
                await self._look()
            self._contest.step(self._clock())
            for branch in self._branches:
                _carry(branch)
            self._tick_leaving()
            self._tell()
            wakes = [branch.way.timer() for branch in self._leaving]
            await self._sleep(min([self._contest.timer(), self._list_at, *wakes]))

    async def _sleep(self, until: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - self._clock())):
                await self._wake.wait()

    async def _look(self) -> None:
        """Read the gateways anew; ways to those that stay are kept."""
        changed, self._changed = self._changed, False
        self._list_at = self._clock() + PROBE_INTERVAL_S
        try:
            gateways = await self._list_gateways(self._excluded_interface)
        except (OSError, TimeoutError) as error:
            _log.warning("port mapping: gateways cannot be listed error=%s", error)
            return
        had = [branch.gateway for branch in self._branches]
        if gateways != had[:: len(self._protocols)]:
            stay = {gateway for gateway in gateways if gateway in had}
            self._leave(branch for branch in self._branches if branch.gateway not in stay)
            self._branches = [
                branch
                for gateway in gateways
                for branch in (
                    [kept for kept in self._branches if kept.gateway == gateway]
                    or [self._branch(gateway, protocol) for protocol in self._protocols]
                )
            ]
            for gateway in gateways:
                self._announcements.join(gateway.local)
            self._contest.replace([branch.way for branch in self._branches], self._clock())
        if changed:
            self._contest.look_again(self._clock())

    def _branch(self, gateway: Gateway, protocol: str) -> _Branch:
        where, local = gateway.address, gateway.local
        way = Way(protocol, where, self._port, self._pace(protocol), self._rng)

        def answered(answer: Answer) -> None:
            way.received(answer, self._clock())
            self._wake.set()

        def unreachable() -> None:
            way.unreachable(self._clock())
            self._wake.set()

        if protocol == UPNP:
            carrier: Wire | Igd = Igd(local, where, self._port, answered, self._rng)
        elif protocol == PCP:
            nonce = pcp.nonce(self._secret, where, local, self._port)
            carrier = Wire(
                local, where, pcp.Pcp(local, self._port, nonce), answered, unreachable
            )  # fmt: skip
        else:
            carrier = Wire(local, where, natpmp.NatPmp(self._port), answered, unreachable)
        return _Branch(gateway, way, carrier)

    def _pace(self, protocol: str) -> Pace:
        release: Iterable[float]
        match protocol:
            case words.PCP:
                waits, lost, release = pcp.waits, pcp.lost_state, RELEASE_WAITS_S
            case words.NATPMP:
                waits, lost, release = natpmp.waits, natpmp.lost_state, RELEASE_WAITS_S
            case _:
                waits, lost, release = igd.waits, igd.lost_state, igd.RELEASE_WAITS_S
        return Pace(waits, lost, release, self._check_s, self._lifetime_s)

    def _announced(self, gateway: str, data: bytes) -> None:
        """Take what a gateway told all hosts; others are not listened to."""
        if not natpmp.is_announcement(data) and not pcp.is_announcement(data):
            return
        held = self._contest.held
        if held is not None and held.gateway == gateway:
            held.announced(self._clock())
        elif held is None and any(branch.way.gateway == gateway for branch in self._branches):
            self._contest.look_again(self._clock())
        self._wake.set()

    def _leave(self, branches: Iterable[_Branch]) -> None:
        """Take back what may be mapped there, as long as it takes."""
        for branch in list(branches):
            branch.way.release(self._clock())
            self._leaving.append(branch)

    def _tick_leaving(self) -> None:
        for branch in list(self._leaving):
            branch.way.tick(self._clock())
            _carry(branch)
            if branch.way.state is State.RESTING:
                branch.carrier.close()
                self._leaving.remove(branch)

    def _tell(self) -> None:
        mapping = self.mapping
        # For how long was granted is not what it is: a renewal's answer may be a second off.
        lasting = mapping and msgspec.structs.replace(mapping, lifetime_s=None)
        if lasting == self._told:
            return
        self._told = lasting
        _log.info("port mapping %s", mapping.text() if mapping is not None else "gone")
        self._on_change(mapping)


def _carry(branch: _Branch) -> None:
    """Send what the way wants sent; hear nothing when it waits for nothing."""
    for request in branch.way.take_requests():
        branch.carrier.send(request)
    if isinstance(branch.carrier, Wire) and not branch.way.waiting:
        branch.carrier.close()


def _log_unless_cancelled(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("port mapping ended by a fault", exc_info=task.exception())
