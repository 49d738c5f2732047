"""The agent: the one place that knows all its parts, starts them in order, and lets them meet.

    state lock → overlay → control plane → discovery → stage files → local API → deployments

A part that a node can do without (the control plane, when libp2p cannot start) becomes a health
item; everything else that fails at start ends the agent with one line. What it learns of others
comes from discovery; WireGuard and the members' certificates say whom to believe.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import Any

import msgspec

from agent import endpoint, enrol
from agent.api import DeployRequest, InviteRequest, LocalApi
from agent.config import Config
from agent.control import ControlPlane
from agent.deploy import heads, messages
from agent.deploy.blobs import BlobServer
from agent.deploy.engines import Engines
from agent.deploy.heads import Head
from agent.deploy.rings import Rings
from agent.deploy.stages import StageHost
from agent.discovery.node import Discovery
from agent.discovery.record import MemberRecord
from agent.errors import (
    ConfigError,
    CoveyError,
    EnvironmentFault,
    MembershipError,
    PeerError,
    StateError,
    to_wire,
)
from agent.health import Health, HealthItem
from agent.identity import privatefile
from agent.identity.keys import NodeId
from agent.membership import join
from agent.membership.certificate import Certificate
from agent.membership.join import JoinRequest
from agent.membership.store import Member, Membership, StateDir
from agent.overlay import wgquick
from agent.overlay.device import DeviceConfig, PeerConfig
from agent.overlay.shell import Overlay
from agent.overlay.wgquick import WgQuickFile
from agent.peers import PeerTable
from agent.underlay import own_addresses

_log = logging.getLogger(__name__)

# How often the agent looks for new members and heads: a newcomer is usable within about a second.
DISCOVER_INTERVAL_S = 1.0
# How often WireGuard's view (handshakes, endpoints) is read and corrected.
OVERLAY_INTERVAL_S = 1.0
# A head that died without a word is believed for so long at most.
HEAD_TTL_S = 30.0


def serve(settings: Config, ready_fd: int | None) -> None:
    """Run the agent until SIGTERM, SIGINT or `agent down`.

    With `ready_fd`, one JSON line goes there when it is up or why it is not; otherwise a fault at
    start is raised.
    """
    logging.basicConfig(
        level=settings.node.log_level.upper(), stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )  # fmt: skip
    try:
        asyncio.run(_serve(settings, ready_fd))
    except CoveyError as error:
        if ready_fd is None:
            raise
        _log.error("%s", error.line())
        _tell(ready_fd, {"error": to_wire(error)})
        sys.exit(error.exit_code)


async def _serve(settings: Config, ready_fd: int | None) -> None:
    with StateDir(settings.state_dir).lock() as state:
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
        await agent.run(lambda: _tell(ready_fd, enrol.facts(membership) | {"pid": os.getpid()}))


def _tell(descriptor: int | None, answer: dict[str, Any]) -> None:
    if descriptor is not None:
        with os.fdopen(descriptor, "w") as pipe:
            pipe.write(json.dumps(answer) + "\n")


class Agent:
    """One running node. `run` returns after `request_stop`, with everything taken down."""

    def __init__(self, settings: Config, membership: Membership) -> None:
        network = settings.network
        self._settings = settings
        self._membership = membership
        self._own = membership.key.id
        self._started = time.time()
        self._stop = asyncio.Event()
        self._news = asyncio.Event()  # a member or endpoint was learnt: WireGuard must follow
        self._addresses = _underlay_addresses(settings, membership)
        self._routing_file = settings.state_dir / "discovery"
        self._heads: list[dict[str, Any]] = []
        self._control_fault: CoveyError | None = None
        self._quick_file: WgQuickFile | None = None
        self.health = Health()
        self.table = PeerTable()
        self.overlay = Overlay(network.interface, network.backend)
        self.control = ControlPlane(
            membership.key, membership.mesh.network_key,
            listen=[f"0.0.0.0:{network.control_port}", f"[::]:{network.control_port}"],
        )  # fmt: skip
        self.discovery = Discovery(
            membership.key, membership.mesh.id, membership.mesh.network_key, membership.verify,
            listen=("::", network.discovery_port), certificate=membership.certificate.encode(),
        )  # fmt: skip
        self.blobs = BlobServer()
        engines = Engines(settings, membership.mesh.id, self._own)
        self.stages = StageHost(settings.state_dir / "stages", engines)
        self.rings = Rings(
            settings, self._own, membership.certificate.name, engines, self.blobs, self
        )
        self.api = LocalApi(self, settings.socket)

    # ------------------------------------------------------------------ life

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start every part, call `on_ready`, and stay until asked to stop."""
        try:
            await self._start()
            on_ready()
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(self._follow_overlay(), name="follow-overlay"),
                    tasks.create_task(self._follow_discovery(), name="follow-discovery"),
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
        mesh = membership.mesh
        await self.overlay.start(
            membership.key.wireguard_private, network.listen_port,
            [IPv6Interface((membership.ipv6, mesh.ipv6_prefix.prefixlen)),
             IPv4Interface((membership.ipv4, mesh.ipv4_network.prefixlen))],
            network.mtu,
        )  # fmt: skip
        for member in membership.peers():
            self._to_table(member)
        await self._apply_peers()
        self.control.serve(join.PROTOCOL, self._admit)
        self.control.serve(messages.PROTOCOL, self._on_deploy_message)
        try:
            await self.control.start()
        except EnvironmentFault as error:
            if "in use" in error.message:
                raise
            self._control_fault = error
            self.health.set(_broken("control-plane-down", "No control plane", error))
        await self.discovery.start()
        await self.blobs.start(str(membership.ipv6), network.overlay_port)
        await self._enter_discovery()
        await self.api.start()
        self.rings.restore()
        _log.info("agent up name=%s node=%s ipv6=%s", membership.certificate.name, self._own,
                  membership.ipv6)  # fmt: skip

    async def _shut_down(self) -> None:
        """Take down what is up, in reverse; one part's failure must not keep the next one up."""
        if self._membership.peers():
            with contextlib.suppress(CoveyError):
                privatefile.replace(self._routing_file, self.discovery.save())
        for part in (self.api, self.rings, self.stages, self.blobs, self.discovery, self.control,
                     self.overlay):  # fmt: skip
            try:
                await part.stop()
            except Exception:
                _log.exception("stopping %s failed", type(part).__name__)
        _log.info("agent down node=%s", self._own)

    # -------------------------------------------------------------- the mesh

    async def _enter_discovery(self) -> None:
        """Come back through whoever is remembered, and say where this node is."""
        raw = privatefile.read(self._routing_file, "discovery state")
        if raw is not None:
            try:
                self.discovery.load(raw)
            except StateError as error:
                # Only a short cut: the members' own endpoints lead back as well.
                _log.warning("%s is not used: %s", self._routing_file, error.message)
        peers = self._membership.peers()
        await self.discovery.bootstrap([e for peer in peers for e in peer.discovery_endpoints])
        network, certificate = self._settings.network, self._membership.certificate
        wireguard, control, discovery = (
            tuple(endpoint.join(address, port) for address in self._addresses)
            for port in (network.listen_port, network.control_port, network.discovery_port)
        )
        self._membership.add_member(
            certificate, time.time(), wireguard_endpoints=wireguard,
            control_addresses=control, discovery_endpoints=discovery,
        )  # fmt: skip
        await self.discovery.publish_member(MemberRecord(
            node=self._own.ed25519, certificate=certificate.encode(),
            wireguard_endpoints=wireguard, control_addresses=control,
            discovery_endpoints=discovery,
        ))  # fmt: skip

    async def _admit(self, peer: NodeId, payload: bytes) -> bytes:
        """Answer a join request: the member is stored and in WireGuard before it is told."""
        request = JoinRequest.decode(payload)
        reply = await asyncio.to_thread(self._membership.admit, request, peer, time.time())
        member = self._membership.find(peer)
        if member is not None:
            self._to_table(member)
            await self._apply_peers()
        return reply.encode()

    async def _follow_overlay(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), OVERLAY_INTERVAL_S)
            self._news.clear()
            try:
                await self._apply_peers()
                self.health.clear("overlay-down")
            except CoveyError as error:
                self.health.set(_broken("overlay-down", "WireGuard fails", error))

    async def _apply_peers(self) -> None:
        now = time.time()
        self.table.observe(await self.overlay.states(), now)
        configs = self.table.configs(lambda node: self._membership.is_member(node, now), now)
        await self.overlay.set_peers(configs)
        self._write_quick_file(configs)

    def _write_quick_file(self, configs: Sequence[PeerConfig]) -> None:
        """Keep the last good state as a wg-quick file, for an operator without Covey."""
        membership, mesh = self._membership, self._membership.mesh
        content = WgQuickFile(
            DeviceConfig(
                membership.key.wireguard_private, self._settings.network.listen_port,
                (IPv6Interface((membership.ipv6, mesh.ipv6_prefix.prefixlen)),
                 IPv4Interface((membership.ipv4, mesh.ipv4_network.prefixlen))),
                self._settings.network.mtu,
            ),
            tuple(configs),
            {m.node_id.wireguard_public: m.certificate.name for m in membership.peers()},
        )  # fmt: skip
        if content != self._quick_file:
            wgquick.write(self._settings.state_dir / f"{self.overlay.name}.conf", content)
            self._quick_file = content

    async def _follow_discovery(self) -> None:
        while True:
            try:
                now = time.time()
                for record in (await self.discovery.members()).values():
                    if record.id != self._own:
                        self._learn(record, now)
                await self._find_heads()
            except CoveyError as error:
                _log.warning("discovery: %s", error.line())
            await asyncio.sleep(DISCOVER_INTERVAL_S)

    def _learn(self, record: MemberRecord, now: float) -> None:
        known = self._membership.find(record.id)
        member = self._membership.add_member(
            Certificate.decode(record.certificate), now,
            wireguard_endpoints=record.wireguard_endpoints,
            control_addresses=record.control_addresses,
            discovery_endpoints=record.discovery_endpoints,
        )  # fmt: skip
        if member != known:
            self._to_table(member)
            self._news.set()
            _log.info("member learnt name=%s node=%s", member.certificate.name, member.node_id)

    def _to_table(self, member: Member) -> None:
        candidates = [endpoint.split(text) for text in member.wireguard_endpoints]
        numeric = [(host, port) for host, port in candidates if _is_address(host)]
        certificate = member.certificate
        self.table.learn(member.node_id, certificate.ipv6,
                         certificate.ipv4(self._membership.mesh.ipv4_network), numeric)  # fmt: skip

    # -------------------------------------------------- deployments and heads

    async def ask(
        self, node: NodeId, request: messages.Request, timeout_s: float
    ) -> messages.Answer:
        """Send a deployment message to another member and return its answer."""
        member = self._membership.find(node)
        if member is None:
            raise MembershipError(f"{node} is no member of this mesh")
        port = self._settings.network.control_port
        # Over the overlay where it reaches: then the underlay sees WireGuard alone.
        addresses = [endpoint.join(str(member.certificate.ipv6), port)]
        if not self.table.connected(node, time.time()):
            addresses += member.control_addresses
        answer = await self.control.request(
            node, addresses, messages.PROTOCOL,
            messages.encode(request), timeout_s=timeout_s,
        )  # fmt: skip
        try:
            return messages.decode_answer(answer)
        except (msgspec.DecodeError, ValueError) as error:
            raise PeerError(f"node …{node.short} answered nonsense: {error}") from None

    def connected_workers(self) -> list[Member]:
        """Return the other members with the role worker that WireGuard reaches now."""
        now = time.time()
        return [
            member
            for member in self._membership.peers()
            if "worker" in member.certificate.roles
            and self._membership.is_member(member.node_id, now)
            and self.table.connected(member.node_id, now)
        ]

    async def announce_heads(self, found: Sequence[Head]) -> None:
        """Tell the mesh which heads answer here."""
        if found:
            await self.discovery.announce(heads.SERVICE, heads.encode(found), HEAD_TTL_S)
        else:
            await self.discovery.withdraw(heads.SERVICE)

    async def _find_heads(self) -> None:
        found = []
        for record in await self.discovery.providers(heads.SERVICE):
            member = self._membership.find(record.id)
            if member is None:
                continue
            try:
                announced = heads.decode(record.payload)
            except PeerError as error:
                _log.warning("node=%s %s", record.id, error.message)
                continue
            address = str(member.certificate.ipv6)
            found += [
                {"model": head.model, "context": head.context, "ring": head.ring,
                 "url": f"http://{endpoint.join(address, head.port)}",
                 "node": str(record.id), "name": member.certificate.name}
                for head in announced
            ]  # fmt: skip
        self._heads = found

    async def _on_deploy_message(self, peer: NodeId, payload: bytes) -> bytes:
        if not self._membership.is_member(peer, time.time()):
            raise MembershipError(f"{peer} is no member of this mesh")
        try:
            request = messages.decode_request(payload)
        except (msgspec.DecodeError, ValueError) as error:
            raise PeerError(f"a deployment message cannot be read: {error}") from None
        return messages.encode(await self.stages.answer(peer, request))

    # ------------------------------------------------------- the local API

    def status(self) -> dict[str, Any]:
        """Describe this node."""
        now, network = time.time(), self._settings.network
        certificate, peers = self._membership.certificate, self.table.nodes()
        control = f"TCP port {network.control_port}"
        return enrol.facts(self._membership) | {
            "pid": os.getpid(),
            "uptime_s": now - self._started,
            "roles": list(certificate.roles),
            "tags": list(certificate.tags),
            "certificate_left_s": certificate.not_after - now,
            "addresses": self._addresses,
            "parts": {
                "overlay": f"{self.overlay.name} ({self.overlay.kind}), UDP port "
                f"{self.overlay.listen_port}",
                "control": self._control_fault.line() if self._control_fault else control,
                "discovery": f"UDP port {network.discovery_port}, "
                f"{len(self.discovery.contacts())} contacts",
            },
            "peers": {
                "known": len(peers),
                "connected": sum(self.table.connected(node, now) for node in peers),
            },
            "engines": [*self.rings.engines(), *self.stages.engines()],
            "health": [msgspec.to_builtins(item) for item in self.health.items()],
        }

    def peers(self) -> dict[str, Any]:
        """Describe the other members and how WireGuard reaches them."""
        now, network = time.time(), self._membership.mesh.ipv4_network
        return {"peers": [
            {"name": member.certificate.name, "node": str(member.node_id),
             "ipv6": str(member.certificate.ipv6), "ipv4": str(member.certificate.ipv4(network)),
             "roles": list(member.certificate.roles), "tags": list(member.certificate.tags),
             "member": self._membership.is_member(member.node_id, now),
             **self.table.describe(member.node_id, now)}
            for member in sorted(self._membership.peers(), key=lambda m: m.certificate.name)
        ]}  # fmt: skip

    def replicas(self) -> dict[str, Any]:
        """List the heads that discovery knows."""
        return {"replicas": self._heads}

    def deployments(self) -> dict[str, Any]:
        """Describe the deployments whose head is here."""
        return {"deployments": self.rings.describe()}

    async def invite(self, request: InviteRequest) -> dict[str, Any]:
        """Make a ticket that leads to this node."""
        if self._control_fault is not None:
            raise self._control_fault
        port = self._settings.network.control_port
        ticket = await asyncio.to_thread(
            self._membership.invite, time.time(),
            addresses=[endpoint.join(address, port) for address in self._addresses],
            ttl_s=request.ttl_s, uses=request.uses, roles=request.roles, tags=request.tags,
        )  # fmt: skip
        return {"ticket": ticket.encode(), "mesh": ticket.mesh_name, "not_after": ticket.not_after,
                "addresses": list(ticket.addresses), "uses": request.uses}  # fmt: skip

    async def deploy(self, request: DeployRequest) -> dict[str, Any]:
        """Start a deployment with this node as head."""
        return await self.rings.deploy(request)

    async def undeploy(self, name: str) -> dict[str, Any]:
        """End a deployment."""
        return await self.rings.undeploy(name)


def _broken(code: str, title: str, error: CoveyError) -> HealthItem:
    return HealthItem(code, "error", title, error.message, error.hint)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _underlay_addresses(settings: Config, membership: Membership) -> list[str]:
    """Return this node's addresses for others: those configured, else those of its interfaces."""
    configured = settings.network.addresses
    for address in configured:
        if not _is_address(address):
            raise ConfigError(
                f"network.addresses holds {address!r}, which is no IP address",
                hint="Give addresses, not names; WireGuard takes nothing else.",
            )
    mesh = membership.mesh
    return list(configured) or own_addresses(
        settings.network.interface, [mesh.ipv6_prefix, mesh.ipv4_network]
    )
