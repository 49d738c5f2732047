"""The agent: the one place that knows all its parts, starts them in order, and lets them meet.

    state lock → ACL → overlay → control plane → discovery → HTTP on the overlay → deployments
               → presence, authority, LAN → models → local API → pages

A part that a node can do without (the control plane, the LAN, the ACL where it cannot be enforced)
becomes a health item; everything else that fails at start ends the agent with one line. What it
learns of others comes from discovery, gossip and the LAN; WireGuard and the members' certificates
say whom to believe. `follow_membership` is where a change of who belongs reaches every part.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from agent import __version__, endpoint, enrol
from agent.acl import policyfile
from agent.acl.service import Acl
from agent.answers import Answers
from agent.api import LocalApi
from agent.appliance import sharing
from agent.attention import talked_to
from agent.authority import Authority, overlaykeys
from agent.authority.service import SERVICE as REVOCATIONS
from agent.company import Company
from agent.config import OVERLAY_HOST, Config
from agent.control import ControlPlane, Down
from agent.deploy import keeper, messages
from agent.deploy.blobs import BlobServer
from agent.deploy.deployments import Deployments
from agent.deploy.drain import Drain
from agent.deploy.engines import Engines
from agent.deploy.links import Around
from agent.discovery.node import Discovery
from agent.discovery.ways import Ways
from agent.doctor.watch import Watch
from agent.engine import cpus
from agent.errors import (
    CoveyError,
    EnvironmentFault,
    MembershipError,
    PeerError,
    StateError,
    to_wire,
)
from agent.health import Health, HealthItem
from agent.http import dashboard, standing
from agent.http.listener import Listener
from agent.identity.keys import NodeId
from agent.lan.beacon import LanBeacon
from agent.lan.peers import LanPeer
from agent.membership.store import Membership, StateDir
from agent.models import messages as model_messages
from agent.models.service import ModelStore
from agent.neighbours import TOPIC as RECORDS
from agent.neighbours import Neighbours
from agent.overlay.alias import Keeping
from agent.overlay.shell import Overlay
from agent.presence.liveness import State
from agent.presence.needs import Sources
from agent.presence.report import Load, Model
from agent.presence.service import Presence
from agent.probing.mss import MssClamp
from agent.relay import messages as relay_messages
from agent.relay.allocation import Limits
from agent.relay.service import Relay
from agent.relay.service import Settings as RelaySettings
from agent.traversal import helpers
from agent.traversal.helpers import Helpers, Outside
from agent.traversal.service import Addresses, Traversal
from agent.traversal.service import Settings as TraversalSettings

_log = logging.getLogger(__name__)

# Time alone ends certificates and network keys: looked at this often.
_MEMBERSHIP_INTERVAL_S = 1.0
# The word that an issuer has a revocation list is repeated at a third of this.
_REVOCATIONS_TTL_S = 900.0
_REVOCATIONS_INTERVAL_S = 30.0
_CATCH_UP_INTERVAL_S = 5.0
_REMEMBER_INTERVAL_S = 300.0
# A member's record, from itself, for who hears nothing of discovery.
RECORD_PROTOCOL = "/covey/record/1"
_RECORD_TIMEOUT_S = 5.0
# Nobody looks for a path to who has been gone for so long. A node that has just come hears old
# news, of members that left and came back since.
_REST_AFTER_S = 10.0
# Who is reached from outside, and how far away: looked at this often, at once while nobody is.
_HELPERS_INTERVAL_S, _HELPERS_FIRST_S = 5.0, 0.3


_LOCK_POLL_S = 0.01


class Starter:
    """Whoever started the daemon and waits: a pipe that takes one JSON line for each step.

    {"joined": facts} or {"loaded": {}}, then {"up": facts} or {"error": …}. Without a pipe there is
    no one to tell.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._pipe = None if descriptor is None else os.fdopen(descriptor, "w")

    @property
    def waits(self) -> bool:
        """Whether someone is there to tell."""
        return self._pipe is not None

    def tell(self, step: str, what: dict[str, Any]) -> None:
        """Write one line; a starter that has gone is no fault."""
        if self._pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps({step: what}), file=self._pipe, flush=True)

    def close(self) -> None:
        """Let it go: nothing more is told."""
        if self._pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                self._pipe.close()
            self._pipe = None


def serve(
    settings: Config, starter: Starter, enrolment: enrol.Enrolment | None = None, *,
    replace_within_s: float | None = None,
) -> None:  # fmt: skip
    """Run the agent until SIGTERM, SIGINT or `agent down`; with an enrolment, join first.

    One that replaces another says that it is loaded, and then waits so long for the other to end:
    to load takes longer than to start. A fault at start is told to the starter, or raised where
    there is none.
    """
    logging.basicConfig(
        level=settings.node.log_level.upper(), stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )  # fmt: skip
    try:
        asyncio.run(_serve(settings, starter, enrolment, replace_within_s))
    except CoveyError as error:
        if not starter.waits:
            raise
        _log.error("%s", error.line())
        starter.tell("error", to_wire(error))
        sys.exit(error.exit_code)
    finally:
        starter.close()


async def _serve(
    settings: Config, starter: Starter, enrolment: enrol.Enrolment | None,
    replace_within_s: float | None,
) -> None:  # fmt: skip
    if replace_within_s is not None:
        starter.tell("loaded", {})
    with await _locked(StateDir(settings.state_dir), replace_within_s or 0.0) as state:
        if enrolment is not None:
            joined = await enrol.join_mesh(settings, state, enrolment, time.time())
            starter.tell("joined", enrol.facts(joined))
        membership = state.membership()
        if membership is None:
            raise MembershipError(
                f"this node is in no mesh ({settings.state_dir} holds no certificate)",
                hint="Run `agent join TICKET`, or `agent mesh create NAME` for a new mesh.",
            )
        agent = Agent(settings, membership)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.request_stop)

        def ready() -> None:
            # What is there now stays, so nobody looks through it again (cli/loading.py).
            gc.freeze()
            gc.enable()
            starter.tell("up", enrol.facts(membership) | {"pid": os.getpid()})
            starter.close()

        await agent.run(ready)


async def _locked(state: StateDir, patience_s: float) -> StateDir:
    """Lock a state directory; who is on it may still end for so long. Raises StateError."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return state.lock()
        except StateError:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(_LOCK_POLL_S)


class Agent:
    """One running node. `run` returns after `request_stop`, with everything taken down."""

    def __init__(self, settings: Config, membership: Membership) -> None:
        network, now = settings.network, time.time()
        self._settings = settings
        self._membership = membership
        self._own = membership.key.id
        self._stop = asyncio.Event()
        self._stirred = asyncio.Event()  # the membership may have changed: every part must follow
        self._following = asyncio.Lock()
        self._members: frozenset[NodeId] = frozenset()
        self._keys = membership.network_keys(now)
        self._health = Health()
        self._drain = Drain(settings.state_dir)
        self._told: dict[str, HealthItem] = {}
        self._overlay = Overlay(
            network.interface, network.backend,
            Keeping(network.outlive_s, str(settings.state_dir.resolve())),
        )  # fmt: skip
        self._clamp = MssClamp(network.interface)
        self._acl = Acl(
            policyfile.where(settings), network.interface, self._own, membership.mesh.ipv4_network,
            policyfile.covey_ports(settings), self._health, required=bool(network.acl),
        )  # fmt: skip
        self._control = ControlPlane(
            membership.key, self._keys,
            listen=[f"0.0.0.0:{network.control_port}", f"[::]:{network.control_port}"],
        )  # fmt: skip
        self._discovery = Discovery(
            membership.key, membership.mesh.id, self._keys, membership.verify,
            listen=("::", network.discovery_port), certificate=membership.certificate.encode(),
            is_member=membership.is_member, on_member=lambda record: self._neighbours.found(record),
            heard=lambda node: self._presence.shown(node),
            ways=Ways(
                inside=lambda host: self._neighbours.inside(host),
                asleep=lambda host: self._neighbours.asleep_at(host),
            ),
        )  # fmt: skip
        self._traversal = Traversal(
            membership.key, membership.mesh.id, self._keys, self._control,
            TraversalSettings(
                network.interface, (membership.mesh.ipv6_prefix, membership.mesh.ipv4_network),
                network.addresses, network.port_mapping,
            ),
            addresses=Addresses(
                control=lambda node: self._company.control_addresses(node),
                signal=self._signal_addresses,
                node_at=lambda address: self._neighbours.at(address),
                overlay=lambda nodes: self._neighbours.overlay_addresses(nodes),
            ),
            changed=lambda: self._neighbours.paths_changed(),
            note=lambda node, text: self._presence.note("path.changed", node, text),
            slept=lambda node: self._presence.slept(node),
            heard=lambda node: self._presence.shown(node),
        )  # fmt: skip
        self._neighbours = Neighbours(
            settings, membership, self._overlay, self._discovery, self._traversal, self._health,
            learnt=self._stirred.set,
        )  # fmt: skip
        self._relay = Relay(
            membership.key, membership.mesh.id, self._keys, network.interface,
            RelaySettings(
                Limits(ports=settings.relay_ports),
                tunnel_port=(
                    network.tunnel_port if "relay" in membership.certificate.roles else None
                ),
                expected="relay" in membership.certificate.roles,
            ),
            health=self._health,
        )  # fmt: skip
        self._company = Company(
            membership, self._neighbours, self._discovery, self._control, network.control_port,
            lambda: self._presence.alive(), lambda: self._presence.there(), self._draining,
            lambda: self._presence.models_changed(),
        )  # fmt: skip
        self._authority = Authority(
            membership, self._control, addresses_of=self._company.control_addresses,
            on_change=self.follow_membership,
        )  # fmt: skip
        self._presence = Presence(
            self._own, self._control, self._ping,
            Sources(
                self._load, self._models, self._company.name_of, self._company.link_addresses,
                lambda: self._drain.on,
            ),
            self._health, changed=self._presence_changed, models=self._company.look_soon,
            left=self._on_left, came=self._traversal.came_up,
            draining=lambda: self._deployments.draining_changed(), software=__version__,
        )  # fmt: skip
        self._lan = LanBeacon(
            membership.key, membership.mesh.id, self._keys, control_port=network.control_port,
            discovery_port=network.discovery_port, wireguard_port=network.listen_port,
            found=self._found_on_lan, on_fault=self._lan_fault,
            excluded_interfaces=(network.interface,),
        )  # fmt: skip
        self._blobs = BlobServer()
        engines = Engines(settings, membership.mesh.id, self._own)
        self._store = ModelStore(
            settings, self._company, (membership.mesh.ipv6_prefix, membership.mesh.ipv4_network),
            lambda: self._deployments.files(),
        )  # fmt: skip
        self._deployments = Deployments(
            settings, membership.key, membership.certificate.name, membership.mesh.id, engines,
            self._blobs, self._company,
            note=lambda kind, name, text: self._presence.note(kind, name, text, tell=True),
            around=Around(
                self._neighbours.nodes, self._neighbours.heard, self._traversal.need,
                self._neighbours.traffic,
            ),
            stored=self._store.provision,
        )  # fmt: skip
        answers = Answers(
            settings, membership, self._overlay, self._control, self._discovery, self._neighbours,
            self._company, self._authority, self._presence, self._acl, self._deployments,
            self._traversal, self._relay, self._store, self._health, self._drain,
            self._lan.peers, self.request_stop,
        )  # fmt: skip
        self._api = LocalApi(answers, settings.socket, settings.gateway_socket)
        self._pages_at = settings.http_listen
        pages = standing.routes(self._health, answers.figures)
        self._pages = Listener(settings.http.names, [*pages, *dashboard.routes(answers)])
        self._doctor = Watch(settings, answers.status, answers.peers, self._health)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._resting: dict[NodeId, asyncio.TimerHandle] = {}  # who will be left alone soon
        self._gone: set[NodeId] = set()
        self._left: set[NodeId] = set()  # who said that it stops

    # ------------------------------------------------------------------ life

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start every part, call `on_ready`, and stay until asked to stop."""
        try:
            await self._start()
            on_ready()
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(work, name=name)
                    for name, work in (
                        ("membership", self._follow_time()),
                        ("authority", self._authority.run()),
                        ("overlay", self._neighbours.follow_overlay()),
                        ("members", self._neighbours.follow_discovery()),
                        ("heads", self._company.follow_heads()),
                        ("revocations", self._follow_revocations()),
                        ("late", self._catch_up()),
                        ("helpers", self._follow_helpers()),
                        ("paths", self._remember_paths()),
                        ("doctor", self._doctor.run()),
                    )
                ]
                await self._stop.wait()
                for loop in loops:
                    loop.cancel()
        finally:
            await self._shut_down()

    def request_stop(self) -> None:
        """Begin to shut down."""
        self._stop.set()

    async def _start(self) -> None:
        network, membership = self._settings.network, self._membership
        self._drain.restore()
        await self._acl.start(membership.live_members(time.time()))
        await self._overlay.start(
            membership.key.wireguard_private, network.listen_port, self._neighbours.interfaces(),
            network.mtu,
        )  # fmt: skip
        try:
            await self._clamp.start()
        except EnvironmentFault as fault:
            _log.warning("segments of forwarded TCP are not clamped: %s", fault.line())
        self._control.serve(messages.PROTOCOL, self._on_deploy_message)
        self._control.serve(model_messages.PROTOCOL, self._on_models_message)
        self._control.subscribe(keeper.TOPIC, self._deployments.on_gossip)
        self._control.subscribe(RECORDS, self._on_record)
        self._control.serve(RECORD_PROTOCOL, self._on_record_wanted)
        for follower in (self._authority.link_changed, self._deployments.on_link, self._on_link):
            self._control.on_link(follower)
        self._authority.begin()
        self._traversal.begin()
        self._neighbours.begin()
        if network.relay:
            self._control.serve(relay_messages.PROTOCOL, self._on_relay_message)
        # Who is a member stands before anyone can ask: the gate, the peers, the DHT's own list.
        await self.follow_membership()
        self._control.on_fault(self._control_fault)
        # It takes a while to start, and packets need not wait for it: where members were reached
        # before is remembered.
        control = asyncio.create_task(self._start_control())
        try:
            await self._discovery.start()
            if network.relay:
                await self._relay.start()
            await self._start_traversal()
        finally:
            await control
        address = str(membership.ipv6)
        keys = overlaykeys.route(membership, self._authority.keys_answer)
        routes = [
            keys, *self._deployments.links.routes(), *self._store.routes(), *sharing.routes(),
        ]  # fmt: skip
        await self._blobs.start(address, network.overlay_port, routes)
        self._presence.start()
        await self._neighbours.enter_discovery()
        if network.mdns:
            await self._lan.start()
        self._store.load()
        await self._deployments.start(address, network.beat_port)
        await self._store.start()
        await self._api.start()
        await self._start_pages()
        self._spawn(self._tell_record())
        self._presence.note("node.up", self._own, "its agent is up", tell=True)
        _log.info("agent up name=%s node=%s ipv6=%s", membership.certificate.name, self._own,
                  membership.ipv6)  # fmt: skip

    async def _start_pages(self) -> None:
        """Show the pages; where their port is taken the node does without."""
        if self._pages_at is None:
            return
        host, port = self._pages_at
        try:
            await self._pages.start(
                str(self._membership.ipv6) if host == OVERLAY_HOST else host, port
            )
        except EnvironmentFault as fault:
            self._health.set(
                HealthItem(
                    "pages-missing", "warning", "No metrics and pages", f"{fault.message}.",
                    fault.hint,
                )
            )  # fmt: skip

    async def _start_control(self) -> None:
        try:
            await self._control.start()
        except EnvironmentFault as error:
            if "in use" in error.message:
                raise
            self._control.start_later(error)

    async def _start_traversal(self) -> None:
        """Look for paths; without the right to, endpoints are tried one after another."""
        try:
            await self._traversal.start(self._overlay.listen_port, self._overlay.opened.birth)
        except EnvironmentFault as fault:
            self._health.set(
                HealthItem(
                    "no-path-engine", "warning", "No way through NATs",
                    f"{fault.message}; members behind routers are not reached.", fault.hint,
                )
            )  # fmt: skip
        else:
            await self._neighbours.follow_membership()

    async def _shut_down(self) -> None:
        """Take down what is up, in reverse; one part's failure must not keep the next one up."""
        for task in self._tasks:
            task.cancel()
        for timer in self._resting.values():
            timer.cancel()
        self._neighbours.remember()
        for part in (self._pages, self._api, self._store, self._deployments, self._lan,
                     self._presence, self._blobs, self._discovery, self._traversal, self._relay,
                     self._control, self._clamp, self._overlay, self._acl):  # fmt: skip
            try:
                await part.stop()
            except Exception:
                _log.exception("stopping %s failed", type(part).__name__)
        _log.info("agent down node=%s", self._own)

    # ------------------------------------------------- who belongs, everywhere

    async def follow_membership(self) -> None:
        """Let every part follow who is a member, what is said of them, and which keys count now."""
        async with self._following:
            await self._follow_membership()

    async def _follow_membership(self) -> None:
        now, membership = time.time(), self._membership
        live = membership.live_members(now)
        members = frozenset(member.node_id for member in live)
        keys = membership.network_keys(now)
        if keys != self._keys:
            self._keys = keys
            for part in (self._control, self._discovery, self._lan, self._traversal, self._relay):
                part.set_network_keys(keys)
            self._presence.note("key.changed", self._own, "the mesh has a new network key")
        gone, new = self._members - members, members - self._members
        self._members = members
        self._gone &= members
        self._left &= members
        if gone or new:
            self._control.set_members(members)
            self._presence.set_members(members)
            self._traversal.set_members(members)
            self._relay.set_members(members)
        if gone:
            self._discovery.recheck()
        for node in gone:
            state = membership.state(node, now)
            kind = "member.changed" if state == "expired" else "member.revoked"
            self._presence.note(kind, node, f"is no member any more: {state}")
        for node in new - {self._own}:
            self._presence.note("member.joined", node, "is a member")
        self._attend()
        self._discovery.set_certificate(membership.certificate.encode())
        await self._acl.update(live, now)
        try:
            await self._overlay.set_addresses(self._neighbours.interfaces())
            await self._neighbours.follow_membership()
        except CoveyError as error:
            # The loop that looks after the overlay says so, and tries again.
            _log.warning("the overlay does not follow yet: %s", error.line())
        self._follow_health(now)

    def _follow_health(self, now: float) -> None:
        """Set and clear the items that follow from this node's own membership."""
        found = {item.code: item for item in self._authority.health(now)}
        for code in self._told.keys() - found.keys():
            self._health.clear(code)
        for item in found.values():
            self._health.set(item)
        self._told = found

    async def _follow_time(self) -> None:
        """Follow the membership when it was stirred, and when time alone may have changed it."""
        revision, live = self._membership.revision, self._members
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MEMBERSHIP_INTERVAL_S):
                    await self._stirred.wait()
            self._stirred.clear()
            now = time.time()
            self._attend()
            self._neighbours.judge_clock(differs=self._presence.clock_differs())
            await self._acl.tick(now)
            live = frozenset(m.node_id for m in self._membership.live_members(now))
            keys = self._membership.network_keys(now)
            if self._membership.revision != revision or live != self._members or keys != self._keys:
                revision = self._membership.revision
                await self.follow_membership()

    async def _follow_revocations(self) -> None:
        """Say in the DHT which revocation list is here, and look at what others say."""
        said: bytes | None = None
        while True:
            announcement = self._authority.announcement()
            if announcement is not None and announcement != said:
                await self._discovery.announce(REVOCATIONS, announcement, _REVOCATIONS_TTL_S)
                said = announcement
            for record in await self._discovery.providers(REVOCATIONS):
                if record.id == self._own:
                    continue
                try:
                    self._authority.heard(record.id, record.payload)
                except PeerError as error:
                    _log.warning("node=%s %s", record.id, error.message)
            await asyncio.sleep(_REVOCATIONS_INTERVAL_S)

    async def _catch_up(self) -> None:
        """Fetch the network keys over the overlay while nobody else hears this node.

        That is how it stands for a member that was off during a whole key change.
        """
        while True:
            await asyncio.sleep(_CATCH_UP_INTERVAL_S)
            if self._presence.links() or self._discovery.contacts():
                continue
            reached = [
                member.certificate.ipv6
                for member in self._membership.peers()
                if self._neighbours.connected(member.node_id)
            ]
            port = self._settings.network.overlay_port
            await overlaykeys.fetch_from_any(reached, port, self._authority.take_keys)

    async def _remember_paths(self) -> None:
        while True:
            await asyncio.sleep(_REMEMBER_INTERVAL_S)
            self._neighbours.remember_paths()

    async def _follow_helpers(self) -> None:
        """Tell the path engine who of those that are reached from outside helps it."""
        mesh = self._membership.mesh
        outside = Outside((mesh.ipv6_prefix, mesh.ipv4_network))
        chosen = Helpers()
        while True:
            for node, (host, _) in self._discovery.contacts():
                outside.answered(node, host)
            hosts = outside.hosts(self._presence.alive())
            found = []
            for member in self._membership.live_members(time.time()):
                rtt_ms = self._presence.describe(member.node_id)["rtt_ms"]
                helper = helpers.reachable(
                    member.node_id, hosts.get(member.node_id),
                    [endpoint.split(text) for text in member.wireguard_endpoints],
                    member.certificate.roles, None if rtt_ms is None else rtt_ms / 1000,
                )  # fmt: skip
                if helper is not None and member.node_id != self._own:
                    found.append(helper)
            chosen = helpers.choose(found, chosen)
            self._traversal.set_helpers(chosen)
            await asyncio.sleep(_HELPERS_INTERVAL_S if found else _HELPERS_FIRST_S)

    # ------------------------------------------------------- what parts ask

    def _signal_addresses(self, node: NodeId) -> list[str] | None:
        """Return where a signal can be brought to a node directly; None: let all pass it on."""
        linked = node in self._presence.links() or self._company.overlay_address(node) is not None
        if linked or any(node == contact for contact, _ in self._discovery.contacts()):
            return self._company.control_addresses(node)
        return None

    async def _ping(self, node: NodeId, timeout_s: float) -> float | None:
        """Ask a member by discovery's own datagrams, over the overlay where that is up."""
        over = self._company.overlay_address(node)
        address = (over, self._settings.network.discovery_port) if over else None
        return await self._discovery.ping(node, address, timeout_s)

    def _draining(self) -> frozenset[NodeId]:
        own = frozenset({self._own} if self._drain.on else ())
        return (self._presence.draining() & self._members) | own

    def _load(self) -> Load:
        engines, free = len(self._deployments.engines()), self._deployments.hardware.free_bytes()
        return Load(free, cpus.find().allowed, os.getloadavg()[0], engines)

    def _models(self) -> list[Model]:
        return [
            Model(engine["ring"][:80], engine["what"][:80], engine["phase"][:80])
            for engine in self._deployments.engines()
        ]

    def _presence_changed(self, node: NodeId, state: State) -> None:
        if state is State.ALIVE:
            self._left.discard(node)
            self._deployments.trust(node)
            if node in self._gone:  # a suspect that answers late was not away
                self._gone.discard(node)
                self._traversal.came_up(node)
            if (timer := self._resting.pop(node, None)) is not None:
                timer.cancel()
        else:
            self._deployments.suspect(node)
        self._attend()
        if state is State.GONE:
            self._gone.add(node)
            self._rest_later(node)

    def _attend(self) -> None:
        """Keep paths to whom this node talks to."""
        gateway = "gateway" in self._membership.certificate.roles
        alive = self._presence.alive()
        there = frozenset(filter(self._goes_on, self._gone))
        self._traversal.keep(
            there | talked_to(
                alive, self._settings.network.keep_paths, self._presence.chosen(),
                self._deployments.partners(), self._company.head_nodes() if gateway else (),
            ),
            there | frozenset(alive),
        )  # fmt: skip

    def _on_left(self, node: NodeId) -> None:
        self._left.add(node)
        self._traversal.left(node)

    def _goes_on(self, node: NodeId) -> bool:
        """Say whether of a member that is gone the agent alone may be, and its WireGuard go on."""
        return node not in self._left and self._neighbours.connected(node)

    def _rest_later(self, node: NodeId) -> None:
        loop = asyncio.get_running_loop()
        self._resting[node] = loop.call_later(_REST_AFTER_S, self._rest, node)

    def _rest(self, node: NodeId) -> None:
        """Leave a member alone that is gone, once its WireGuard is as well."""
        if self._goes_on(node):
            self._rest_later(node)
            return
        del self._resting[node]
        self._traversal.rest(node)

    def _found_on_lan(self, peer: LanPeer) -> None:
        """Greet a neighbour that announced itself; discovery then says whether it is a member."""
        contacts = {node for node, _ in self._discovery.contacts()}
        if peer.node not in contacts:
            self._spawn(self._greet(peer, come_in=not contacts))

    async def _greet(self, peer: LanPeer, *, come_in: bool) -> None:
        if come_in:
            await self._discovery.bootstrap(
                [endpoint.join(address, peer.discovery_port) for address in peer.addresses]
            )
            return
        for address in peer.addresses:
            place = (address, peer.discovery_port)
            if await self._discovery.ping(peer.node, place) is not None:
                return

    def _control_fault(self, down: Down | None) -> None:
        """Say that the node runs on without a control plane, and that it is being restarted."""
        if down is None:
            self._health.clear("control-plane-down")
            return
        self._health.set(
            HealthItem(
                "control-plane-down", "error", "No control plane",
                f"{down.reason}; it is started again {down.when()}", down.hint,
            )
        )  # fmt: skip

    def _lan_fault(self, fault: EnvironmentFault | None) -> None:
        if fault is None:
            self._health.clear("lan-silent")
        else:
            self._health.set(
                HealthItem(
                    "lan-silent", "warning", "Not found on the LAN", fault.message, fault.hint
                )
            )

    async def _tell_record(self) -> None:
        """Give all members this node's record, so that none waits for the DHT."""
        record = self._discovery.own_record()
        if record is not None:
            with contextlib.suppress(CoveyError):
                await self._control.publish(RECORDS, record)

    def _on_link(self, node: NodeId, up: bool) -> None:
        if up:
            self._traversal.came_up(node)
            if not self._discovery.contacts():
                self._spawn(self._fetch_record(node))

    async def _fetch_record(self, node: NodeId) -> None:
        """Get a member's record from itself: where no UDP gets through, discovery says nothing."""
        addresses = self._company.control_addresses(node)
        raw = await self._control.request(
            node, addresses, RECORD_PROTOCOL, b"", timeout_s=_RECORD_TIMEOUT_S
        )
        if raw:
            self._discovery.take_member(raw)

    async def _on_record_wanted(self, peer: NodeId, payload: bytes) -> bytes:
        return self._discovery.own_record() or b""

    async def _on_record(self, author: NodeId, payload: bytes) -> bool:
        return self._discovery.take_member(payload)

    async def _on_relay_message(self, peer: NodeId, payload: bytes) -> bytes:
        if not self._membership.is_member(peer, time.time()):
            raise MembershipError(f"{peer} is no member of this mesh")
        return await self._relay.answer(peer, payload)

    async def _on_deploy_message(self, peer: NodeId, payload: bytes) -> bytes:
        if not self._membership.is_member(peer, time.time()):
            raise MembershipError(f"{peer} is no member of this mesh")
        self._presence.heard(peer)
        request = messages.decode_request(payload)
        return messages.encode(await self._deployments.answer(peer, request))

    async def _on_models_message(self, peer: NodeId, payload: bytes) -> bytes:
        if not self._membership.is_member(peer, time.time()):
            raise MembershipError(f"{peer} is no member of this mesh")
        self._presence.heard(peer)
        request = model_messages.decode_request(payload)
        return model_messages.encode(self._store.answer(request))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _quietly(work: Any) -> None:
    """Await work that nobody waits for; a fault of it is logged."""
    try:
        await work
    except (CoveyError, StateError) as error:
        _log.info("left undone: %s", error.line())
