"""Finds a way to each member and tells WireGuard: the path engine's shell. Used by the daemon.

    traversal = Traversal(…)
    await traversal.start(port)            # raises EnvironmentFault without CAP_NET_RAW
    traversal.set_members(…); traversal.introduce(…)   # who there is, and where by its record
    traversal.keep(…); traversal.need(…)   # to whom paths are kept; whom somebody needs now
    traversal.observe(states)              # what WireGuard shows
    traversal.wish(node)                   # what WireGuard is to have; `changed` says: it is new
    await traversal.stop()

Everything is decided in `agent/paths`. This gives it datagrams, signals, time and what this machine
knows, and carries out what it wants. Monotonic time, except where relays count unix time.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from random import SystemRandom
from typing import Any

from agent import endpoint as endpoints
from agent.errors import EnvironmentFault
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.overlay.device import PeerState
from agent.paths.candidates import PathClass, Surroundings, is_private
from agent.paths.engine import PathEngine
from agent.paths.messages import (
    PROBE_BYTES,
    Observe,
    Ping,
    Place,
    Probe,
    RelayOffer,
    WireError,
)
from agent.paths.outputs import (
    AddSnat,
    CloseRelay,
    HoldEndpoint,
    MtuFound,
    OpenRelay,
    Output,
    PathChanged,
    ReleaseEndpoint,
    RemoveSnat,
    RenewSession,
    SendProbe,
    SendSignal,
    SetEndpoint,
    StartBirthday,
    StopBirthday,
)
from agent.paths.own import RelayNode, Rendezvous
from agent.paths.wire import NONCE_BYTES, PathSeal
from agent.peers import Wish
from agent.portmap.service import PortMapper
from agent.portmap.words import Mapping
from agent.probing.changes import UnderlayChanges
from agent.probing.demand import Address, DemandTap
from agent.probing.hold import Holds
from agent.probing.nft import Run, run_nft
from agent.probing.noroute import NoRoute
from agent.probing.plainport import PlainPort
from agent.probing.port import Port
from agent.probing.rawport import RawPort
from agent.probing.rendezvous import Asked
from agent.probing.rendezvous import Rendezvous as Answering
from agent.probing.snat import BirthdayRules
from agent.relay import messages as relay_messages
from agent.traversal import netcheck
from agent.traversal.birthdays import Birthdays
from agent.traversal.carrier import Carrier, Control
from agent.traversal.helpers import Helpers
from agent.traversal.netcheck import Hairpin
from agent.traversal.relayuse import Listener, RelayUse
from agent.traversal.surroundings import underlay_interfaces

_log = logging.getLogger(__name__)

# The rendezvous' second port is the one beside WireGuard's.
SECOND_PORT_OFFSET = 1
_RELAY_ASK_S = 3.0
# More than this between two looks at WireGuard, and packets flow: presence and gossip stay below.
FLOW_BYTES = 4096
# WireGuard's counters are news to the engine at most this often, whoever else asked for them.
LOOK_MIN_S = 0.4
# Nothing that was sealed for us in so long, though peers are looked for: this node may lack the
# network key, which WireGuard does not need. Idle paths are pinged each 14 s; at start all answer.
DEAF_S, DEAF_FIRST_S = 45.0, 5.0
# Nearly all paths are found sooner, and until then nothing is to be sent to the peer: WireGuard
# would take it for a handshake that failed, and begin the next 5 s later.
PASSIVE_AFTER_S = 10.0
# Members that are gone and may call WireGuard.
CALLERS_MAX = 64
_WORDS = {
    PathClass.LAN: "lan", PathClass.IPV6: "ipv6", PathClass.PUBLIC: "public",
    PathClass.PUNCHED: "punched", PathClass.RELAYED: "relayed",
}  # fmt: skip


_GONE = "it is gone; it is looked for when it is heard of again"
_ASLEEP = "nothing flows to it; it is connected when something does"


@dataclass(frozen=True)
class Addresses:
    """What others know of where members are."""

    control: Callable[[NodeId], Sequence[str]]
    """Where a member's control plane can be reached now."""
    signal: Callable[[NodeId], Sequence[str] | None]
    """Where a signal can be brought to it; None: let all pass it on."""
    node_at: Callable[[Address], NodeId | None]
    """Whose overlay address one is."""
    overlay: Callable[[Iterable[NodeId]], Sequence[Address]]
    """The overlay addresses of some members."""


@dataclass(frozen=True)
class Settings:
    """What an operator can set: addresses of this node, whether to map a port at the router."""

    interface: str
    overlay_networks: tuple[IPv4Network | IPv6Network, ...]
    addresses: tuple[str, ...] = ()
    port_mapping: bool = True


@dataclass
class _Set:
    """What WireGuard is to have for a peer; the inner MTU of the path, 0 while it is not known."""

    wish: Wish = field(default_factory=Wish)
    mtu: int = 0


@dataclass
class _Parts:
    """What is there between `start` and `stop`."""

    port: Port
    second: Port
    answering: Answering
    relays: RelayUse
    birthdays: Birthdays
    holds: Holds
    mapper: PortMapper
    changes: UnderlayChanges
    wireguard_port: int
    tap: DemandTap
    no_route: NoRoute
    kept: frozenset[NodeId] = frozenset()
    reached: frozenset[NodeId] = frozenset()
    seen: dict[NodeId, tuple[int, int]] = field(default_factory=dict)
    looked_at: float = float("-inf")
    flows: bool = False
    hairpin: Hairpin = field(default_factory=Hairpin)


class Traversal:
    """One node's ways to the others. All methods belong to the asyncio loop."""

    def __init__(
        self,
        key: NodeKey,
        mesh_id: bytes,
        keys: NetworkKeys,
        control: Control,
        settings: Settings,
        *,
        addresses: Addresses,
        changed: Callable[[], None],
        note: Callable[[NodeId, str], None] = lambda node, text: None,
        slept: Callable[[NodeId], None] = lambda node: None,
        heard: Callable[[NodeId], None] = lambda node: None,
        make_port: Callable[[int], Port] = RawPort,
        make_second: Callable[[int], Port] = PlainPort,
        run: Run = run_nft,
    ) -> None:
        """`changed`: another peer, endpoint or MTU counts. `note`: a path changed, for people.

        `slept`: no path is kept to that member any more. `heard`: a probe came from it. The
        others replace the system, for tests.
        """
        self._key = key
        self._mesh_id = mesh_id
        self._keys = keys
        self._control = control
        self._settings = settings
        self._addresses = addresses
        self._changed = changed
        self._note = note
        self._slept = slept
        self._tell_heard = heard
        self._make_port, self._make_second, self._run = make_port, make_second, run
        self._seal = PathSeal(key, mesh_id, keys, secrets.randbits(62))
        self._engine = PathEngine(key.id, SystemRandom(), time.time_ns() // 1_000_000)
        self._carrier = Carrier(control, addresses.signal, self._signal)
        self._members: frozenset[NodeId] = frozenset()
        self._helpers = Helpers()
        self._hosts: dict[NodeId, tuple[str, ...]] = {}
        self._mapping: Mapping | None = None
        self._sets: dict[NodeId, _Set] = {}
        self._introduced: set[NodeId] = set()
        self._there: set[NodeId] = set()  # who showed that its agent is up, and did not go since
        self._talked_to: frozenset[NodeId] = frozenset()
        self._wanted: set[NodeId] = set()
        self._reached: set[NodeId] = set()  # by some path
        self._alive: frozenset[NodeId] | None = None  # nobody has said yet
        self._callers: frozenset[NodeId] = frozenset()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._parts: _Parts | None = None
        self._heard_at = float("inf")
        self.failed = False
        self._failure = ""

    # ------------------------------------------------------------------ life

    def begin(self) -> None:
        """Have signals heard from the control plane's first moment."""
        self._carrier.begin()

    async def start(self, wireguard_port: int, birth: int = 0) -> None:
        """Begin; WireGuard holds its port. Raises EnvironmentFault where that cannot be shared.

        Then `failed` is true, and WireGuard's endpoints are others' business. `birth`: of its
        interface (`Opened`).
        """
        self._engine.resume(birth)
        try:
            await self._start(wireguard_port)
        except EnvironmentFault as fault:
            self.failed, self._failure = True, fault.message
            raise

    async def _start(self, wireguard_port: int) -> None:
        port = self._make_port(wireguard_port)
        second = self._make_second(wireguard_port + SECOND_PORT_OFFSET)
        answering = Answering(port, second, self._second_heard)
        port.open(self._heard)
        try:
            relays = RelayUse(
                self._key, self._mesh_id, self._keys, wireguard_port, self._ask_relay,
                lambda place, datagram: void(port.send(place, datagram)), self._relay_host,
                Listener(self._relay_opened, self._relay_failed),
            )  # fmt: skip
            rules = BirthdayRules(self._settings.interface, wireguard_port, run=self._run)
            birthdays = Birthdays(rules, self._unseal, self._met)
            await birthdays.start()
            secret = hashlib.blake2b(self._key.seed, person=b"covey portmap").digest()
            mapper = PortMapper(
                wireguard_port, secret, self._mapped, enabled=self._settings.port_mapping,
                excluded_interface=self._settings.interface,
            )  # fmt: skip
            holds = Holds(self._settings.interface, wireguard_port, run=self._run)
            await holds.start()
            changes = UnderlayChanges(self._settings.interface, self._underlay_changed)
        except BaseException:
            port.close()
            raise
        no_route = NoRoute()
        tap = DemandTap(
            self._settings.interface, self._on_demand, lambda head: no_route.say(head, _now())
        )
        self._parts = _Parts(
            port, second, answering, relays, birthdays, holds, mapper, changes, wireguard_port, tap,
            no_route,
        )  # fmt: skip
        try:
            answering.start()
        except EnvironmentFault as fault:
            _log.warning("no second rendezvous port: %s", fault.line())
        for part in (changes, tap):
            try:
                part.start()
            except EnvironmentFault as fault:
                _log.warning("%s", fault.line())
        await mapper.start()
        self._heard_at = _now() - DEAF_S + DEAF_FIRST_S
        self._tell_local()
        self._after()

    async def stop(self) -> None:
        """Give back relays, mappings and rules, and close the ports."""
        parts, self._parts = self._parts, None
        if self._timer is not None:
            self._timer.cancel()
        await self._carrier.stop()
        if parts is None:
            return
        await parts.changes.stop()
        await asyncio.gather(
            parts.mapper.stop(), parts.relays.stop(), parts.birthdays.stop(), parts.holds.stop()
        )
        parts.tap.stop()
        parts.no_route.stop()
        parts.answering.stop()
        parts.port.close()

    # ---------------------------------------------------- what the daemon says

    def set_members(self, members: Iterable[NodeId]) -> None:
        """Replace who is a member: nobody else is heard."""
        self._members = frozenset(members) - {self._key.id}
        self._seal.set_members(self._members)
        self._carrier.set_members(self._members)
        now = _now()
        self._wanted &= self._members
        for node in {*self._engine.peers(), *self._introduced} - self._members:
            self._engine.expel(node, now)
            self._introduced.discard(node)
            self._there.discard(node)
        self._choose_callers()
        self._after()

    def set_network_keys(self, keys: NetworkKeys) -> None:
        """Replace the network keys."""
        self._keys = keys
        self._seal.set_network_keys(keys)
        if self._parts is not None:
            self._parts.relays.set_network_keys(keys)

    def set_helpers(self, helpers: Helpers) -> None:
        """Say who is of use."""
        if helpers != self._helpers:
            self._helpers = helpers
            self._tell_local()

    def introduce(self, node: NodeId, places: Sequence[Place], was_at: Place | None = None) -> None:
        """Say where a member says it is, by its record, and was reached before this node started.

        Nobody is looked for before that: who has no record is only just joining, by a connection
        that is not yet its agent's, and what it were sent there would be a stranger's to it.
        """
        if node in self._members:
            self._engine.introduce(node, places, _now(), was_at)
            self._introduced.add(node)
            self._follow()

    def keep(self, nodes: frozenset[NodeId], alive: Collection[NodeId]) -> None:
        """Replace the members to whom paths are kept, whether anything flows to them or not, and
        those that are there.
        """
        if self._alive != alive:
            self._alive = frozenset(alive)
            self._choose_callers()
        if nodes != self._talked_to:
            self._talked_to = nodes
            self._follow()

    def need(self, node: NodeId) -> bool:
        """Find a path to a member, and keep it while packets flow; False for who is none."""
        if node not in self._introduced or self._parts is None:
            return node in self._members
        self._engine.need(node, _now())
        self._after()
        return True

    def configured(self, keys: Collection[bytes]) -> None:
        """Say whom WireGuard has as peers now, by their WireGuard keys."""
        if self._parts is not None:
            kept = self._engine.peers()
            self._engine.ready([node for node in kept if node.wireguard_public in keys], _now())
            self._after()

    def came_up(self, node: NodeId) -> None:
        """Say that a member's agent was just heard of, or that signals get to it only now."""
        self._there.add(node)
        self._engine.came_up(node, _now())
        self._after()

    def left(self, node: NodeId) -> None:
        """Say that a member's agent said that it stops."""
        self._there.discard(node)
        self._engine.left(node, _now())
        self._after()

    def places(self) -> dict[NodeId, Place]:
        """Return where members are reached directly, for the next start (`introduce`)."""
        now, found = _now(), {}
        for node in self._reached:
            view = self._engine.describe(node, now)
            if view is not None and view.direct and view.place is not None:
                found[node] = view.place
        return found

    def _follow(self) -> None:
        if self._parts is None:
            return
        now, wanted = _now(), self._introduced & self._talked_to
        for node in self._wanted - wanted:
            self._engine.let_go(node, now)
        for node in wanted - self._wanted:
            self._engine.want(node, now)
        self._wanted = wanted
        self._after()

    def _gone(self, node: NodeId) -> bool:
        return self._alive is not None and node in self._members and node not in self._alive

    def _choose_callers(self) -> None:
        """Choose who of the gone may call; each node others, so that all may call some."""
        gone = filter(self._gone, self._members)
        own = self._key.id.ed25519
        by_chance = sorted(gone, key=lambda node: hashlib.blake2b(node.ed25519 + own).digest())
        callers = frozenset(by_chance[:CALLERS_MAX])
        if callers != self._callers:
            self._callers = callers
            self._changed()

    def _on_demand(self, address: Address) -> bool:
        node = self._addresses.node_at(address)
        return node is not None and self.need(node)

    def observe(self, states: Sequence[PeerState]) -> bool:
        """Take what WireGuard shows of its peers; say whether packets flow to any."""
        parts = self._parts
        if parts is None:
            return False
        now, flows = _now(), False
        if now - parts.looked_at < LOOK_MIN_S:
            return parts.flows
        by_key = {node.wireguard_public: node for node in self._engine.peers()}
        for state in states:
            node = by_key.get(state.public_key)
            if node is None:
                continue
            rx, tx = parts.seen.get(node, (0, 0))
            flows |= state.rx_bytes - rx + state.tx_bytes - tx >= FLOW_BYTES
            parts.seen[node] = state.rx_bytes, state.tx_bytes
            self._engine.wireguard_seen(
                node, state.endpoint, state.rx_bytes, state.tx_bytes, now,
                session=state.last_handshake is not None,
            )  # fmt: skip
        parts.looked_at, parts.flows = now, flows
        self._after()
        return flows

    def rest(self, node: NodeId) -> None:
        """Stop looking for a member that is gone, until it is to be kept again."""
        self._there.discard(node)
        self._engine.forget(node, _now())
        self._after()

    # ------------------------------------------------------- what is asked

    @property
    def deaf(self) -> bool:
        """Whether no member was heard lately: a node that was off during a change of the network
        key hears nobody, and gets the new one by WireGuard alone.
        """
        return bool(self._engine.peers()) and _now() - self._heard_at > DEAF_S

    def asleep(self, node: NodeId) -> bool:
        """Say whether no path is kept to a member, since nobody needs one."""
        if self._parts is None or self.deaf:
            return False  # all are WireGuard's then
        kept = self._parts.kept
        return node in self._introduced and node not in kept and not self._gone(node)

    def wish(self, node: NodeId) -> Wish | None:
        """Return how WireGuard shall reach a member; None while no path to it is kept.

        One that is gone may call: if it was off during a change of the network key, WireGuard's own
        handshake is all that anybody hears of it. So may one that no path is found to: it may have
        no path engine.
        """
        if self._parts is None or node not in self._parts.kept:
            return Wish(passive=True) if node in self._callers else None
        known = self._sets.get(node)
        if known is not None and known.wish.endpoint is not None:
            return known.wish
        view = self._engine.describe(node, _now())
        return Wish(passive=view is not None and _now() - view.since > PASSIVE_AFTER_S)

    def mtu(self, node: NodeId) -> int:
        """Return the largest packet that fits through the tunnel to a node; 0: not measured."""
        known = self._sets.get(node)
        return 0 if known is None else known.mtu

    def describe(self, node: NodeId) -> dict[str, Any]:
        """Describe the path to a node: class, RTT, since when, and why it is relayed if it is."""
        now = _now()
        view = self._engine.describe(node, now)
        if view is None:
            if self.asleep(node):
                return {"route": "asleep", "why": _ASLEEP}
            return {"route": "none", "why": _GONE} if self._gone(node) else {}
        known = self._sets.get(node)
        return {
            "route": _WORDS[view.path_class] if view.path_class is not None else "none",
            "path_rtt_ms": None if view.rtt_s is None else 1000 * view.rtt_s,
            "path_jitter_ms": 1000 * view.jitter_s,
            "path_loss": view.loss,
            "path_age_s": max(0.0, now - view.since),
            "relay": str(view.relay) if view.relay is not None else None,
            "why": view.why,
            "path_mtu": known.mtu or None if known is not None else None,
        }

    def summary(self) -> str:
        """Return in a few words what stands between this node and the others."""
        if self._parts is None:
            return "not looked for" if self.failed else "starting"
        seen = [endpoints.join(*place) for place in self._engine.places(_now())]
        mapping = self._parts.mapper.mapping
        mapped = f", mapped to {mapping.text()}" if mapping is not None else ""
        as_ = f", seen as {', '.join(seen)}" if seen else ""
        return f"NAT {self._engine.nat.name.lower()}{as_}{mapped}"

    def surroundings(self) -> dict[str, Any]:
        """Return the same for programs: the NAT's kind, a mapped port, how many members help."""
        parts = self._parts
        mapping = parts.mapper.mapping if parts is not None else None
        return {
            "nat": self._engine.nat.name.lower(),
            "mapped": mapping is not None and mapping.public,
            "rendezvous": len(self._helpers.rendezvous),
            "relays": len(self._helpers.relays),
        }

    async def netcheck(self, *, linked: bool = True) -> dict[str, Any]:
        """Describe this node's own network, with what follows; `linked`: to some member, by TCP."""
        parts = self._parts
        found = netcheck.Found(
            nat=self._engine.nat, seen=self._engine.places(_now()),
            interfaces=underlay_interfaces(
                self._settings.interface, self._settings.overlay_networks
            ),
            mapping=parts.mapper.describe() if parts is not None else None,
            mtus=[known.mtu for known in self._sets.values() if known.mtu],
            helpers=self._helpers, port=parts.wireguard_port if parts is not None else 0,
            linked=linked, failure=self._failure if self.failed else "",
        )  # fmt: skip
        return await netcheck.describe(found, parts.hairpin if parts is not None else None)

    # ----------------------------------------------------------- what comes in

    def _heard(self, place: Place, datagram: bytes, local: str) -> None:
        parts = self._parts
        if parts is None:
            return
        if parts.hairpin.heard(datagram):
            return
        if len(datagram) < PROBE_BYTES:
            parts.relays.received(place, datagram)
            return
        try:
            peer, probe = self._seal.open_probe(datagram)
        except WireError as error:
            _log.debug("datagram from %s dropped: %s", place, error.message)
            return
        self._feed(peer, place, probe, 0)

    def _feed(self, peer: NodeId, place: Place, probe: Probe, local_port: int) -> None:
        self._heard_at = _now()
        self._tell_heard(peer)
        self._engine.probe_received(peer, place, probe, _now(), local_port)
        self._after()

    def _second_heard(self, place: Place, payload: bytes, asked: Asked) -> bytes | None:
        """Take what came to the second port: the engine answers questions, from that port."""
        parts = self._parts
        if asked is Asked.WIREGUARD or parts is None:
            return None  # heard by `_heard`
        try:
            peer, probe = self._seal.open_probe(payload)
        except WireError:
            return None
        if isinstance(probe, Observe):
            self._feed(peer, place, probe, parts.second.port)
        return None

    def _unseal(self, peer: NodeId, datagram: bytes) -> Probe | None:
        try:
            sender, probe = self._seal.open_probe(datagram)
        except WireError:
            return None
        return probe if sender == peer else None

    def _met(self, peer: NodeId, place: Place, probe: Probe, local_port: int) -> None:
        self._feed(peer, place, probe, local_port)

    def _signal(self, bringer: NodeId, sealed: bytes) -> None:
        if self._parts is None:
            return
        try:
            peer, signal = self._seal.open_signal(sealed)
        except WireError as error:
            _log.debug("signal by node=%s dropped: %s", bringer, error.message)
            return
        self._heard_at = _now()
        self._engine.signal_received(peer, signal, _now())
        self._after()

    def _relay_opened(
        self, peer: NodeId, relay: NodeId, place: Place, offer: RelayOffer | None
    ) -> None:
        self._engine.relay_opened(peer, relay, place, offer, _now())
        self._after()

    def _relay_failed(self, peer: NodeId, relay: NodeId) -> None:
        self._engine.relay_failed(peer, relay, _now())
        self._after()

    def _mapped(self, mapping: Mapping | None) -> None:
        self._mapping = mapping
        self._tell_local()

    async def _underlay_changed(self) -> None:
        parts = self._parts
        if parts is None:
            return
        if isinstance(parts.port, RawPort):
            parts.port.forget_sources()
        parts.mapper.network_changed()
        parts.relays.network_changed()
        self._tell_local()
        self._engine.network_changed(_now())
        self._after()

    # -------------------------------------------------------------- inside

    def _tell_local(self) -> None:
        """Tell the engine what this machine knows of its network."""
        parts, settings = self._parts, self._settings
        if parts is None:
            return
        mapped = self._mapping
        around = Surroundings(
            interfaces=underlay_interfaces(settings.interface, settings.overlay_networks),
            overlay=settings.overlay_networks,
            port=parts.wireguard_port,
            mapped=(mapped.external,) if mapped is not None and mapped.public else (),
            configured=tuple((host, parts.wireguard_port) for host in settings.addresses),
        )
        rendezvous = [
            Rendezvous(node, place, (place[0], place[1] + SECOND_PORT_OFFSET))
            for node, place in self._helpers.rendezvous
        ]
        relays = [RelayNode(node, frozenset(hosts)) for node, hosts in self._helpers.relays]
        self._engine.set_local(around, rendezvous, relays, _now())
        self._after()

    def _after(self) -> None:
        """Carry out what the engine wants, and have it woken when it wants to be."""
        if self._parts is None:
            return
        for output in self._engine.take():
            self._carry_out(self._parts, output)
        self._follow_kept(self._parts)
        due = self._engine.wake_at()
        if due == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = due
        if due != float("inf"):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(due, self._tick)

    def _follow_kept(self, parts: _Parts) -> None:
        kept = frozenset(self._engine.peers())
        reached = kept & self._reached
        if (kept, reached) == (parts.kept, parts.reached):
            return
        parts.reached = reached
        overlay = self._addresses.overlay
        parts.tap.ignore(overlay(reached), waiting=overlay(kept - reached))
        if kept == parts.kept:
            return
        left, parts.kept = parts.kept - kept, kept
        for node in left:
            self._sets.pop(node, None)
            parts.seen.pop(node, None)
            self._slept(node)
        self._changed()

    def _tick(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        self._engine.tick(_now())
        self._after()

    def _carry_out(self, parts: _Parts, output: Output) -> None:
        peer = output.peer
        match output:
            case SendProbe():
                self._send_probe(parts, output)
            case SendSignal():
                nonce = secrets.token_bytes(NONCE_BYTES)
                sealed = self._seal.seal_signal(peer, output.signal, nonce)
                unheard = output.unheard and peer not in self._there
                self._carrier.send(peer, sealed, doubtful=output.doubtful, unheard=unheard)
            case SetEndpoint():
                known = self._sets.setdefault(peer, _Set())
                order, session = known.wish.order + 1, known.wish.session
                known.wish = Wish(output.place, order, session)
                self._changed()
            case RenewSession():
                known = self._sets.setdefault(peer, _Set())
                known.wish = replace(known.wish, session=known.wish.session + 1)
                self._changed()
            case HoldEndpoint():
                parts.holds.hold(output.old, output.new)
            case ReleaseEndpoint():
                parts.holds.release(output.old)
            case OpenRelay():
                parts.relays.open(peer, output.relay, tunnel=output.tunnel, ticket=output.ticket)
            case CloseRelay():
                parts.relays.close(peer, output.relay)
            case StartBirthday():
                parts.birthdays.begin(
                    peer, output.place, output.sockets, lambda: self._opening(peer)
                )
            case StopBirthday():
                parts.birthdays.end(peer)
            case AddSnat():
                parts.birthdays.open_way(peer, output.place, output.local_port)
            case RemoveSnat():
                parts.birthdays.close_way(output.place)
            case MtuFound():
                known = self._sets.setdefault(peer, _Set())
                if known.mtu != output.mtu:
                    known.mtu = output.mtu
                    self._changed()
            case PathChanged():
                new = output.new
                if new.path_class is not None:
                    self._reached.add(peer)
                else:
                    self._reached.discard(peer)
                route = _WORDS[new.path_class] if new.path_class is not None else "none"
                _log.info("path node=%s route=%s place=%s reason=%s", peer, route, new.place,
                          output.reason)  # fmt: skip
                self._note(peer, f"is reached {route}: {output.reason}")

    def _send_probe(self, parts: _Parts, output: SendProbe) -> None:
        probe = output.probe
        datagram = self._seal.seal_probe(output.peer, probe, secrets.token_bytes(NONCE_BYTES))
        if output.local_port == parts.second.port:
            parts.second.send(output.place, datagram)
            return
        if output.local_port:
            parts.birthdays.send(output.peer, output.local_port, datagram)
            return
        parts.port.send(output.place, datagram, whole=len(datagram) > PROBE_BYTES)

    def _opening(self, peer: NodeId) -> bytes:
        """Return what birthday sockets send: it only opens the NAT."""
        ping = Ping(secrets.randbits(62), answer=False)
        return self._seal.seal_probe(peer, ping, secrets.token_bytes(NONCE_BYTES))

    def _relay_host(self, relay: NodeId) -> str | None:
        """Return the address at which a relay serves us: a public one if it has one."""
        hosts = next((hosts for node, hosts in self._helpers.relays if node == relay), ())
        return min(hosts, key=lambda host: (":" in host, is_private(host)), default=None)

    async def _ask_relay(self, relay: NodeId, request: bytes) -> bytes:
        addresses = self._addresses.control(relay)
        return await self._control.request(
            relay, addresses, relay_messages.PROTOCOL, request, timeout_s=_RELAY_ASK_S
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def void(_: object) -> None:
    """Take what somebody returns, and return nothing."""
