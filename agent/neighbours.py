"""The other members as this node sees them: found by discovery, reached by WireGuard.

A service around three parts: the membership says who belongs, discovery where they are, and the
overlay's device gets the peers that follow. Used by the daemon, which starts the parts themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from typing import Any

from agent import endpoint
from agent.config import Config
from agent.discovery.node import Discovery
from agent.discovery.record import MemberRecord
from agent.errors import ConfigError, CoveyError, EnvironmentFault, StateError
from agent.health import Health, HealthItem
from agent.identity import privatefile
from agent.identity.keys import NodeId
from agent.membership.certificate import Certificate
from agent.membership.store import Member, Membership
from agent.overlay import wgquick
from agent.overlay.device import DeviceConfig, Interface, PeerConfig
from agent.overlay.shell import Overlay
from agent.overlay.wgquick import WgQuickFile
from agent.peers import PeerTable
from agent.placement.measured import Heard, one_way
from agent.traversal.memory import PathMemory
from agent.traversal.resumed import direct_places
from agent.traversal.service import Traversal
from agent.underlay import own_addresses

_log = logging.getLogger(__name__)

# How often discovery is asked for members. Newcomers are told by gossip, and seen by whoever stores
# their records, at once; this finds who was missed.
DISCOVER_INTERVAL_S = 20.0
# How often WireGuard's view (handshakes, endpoints) is read and corrected: while packets flow, so
# that a path that dies is noticed; while someone is not connected; and while all are. Handshakes
# follow new endpoints within round trips, so for NEW_PATH_S after those it is looked at most often.
OVERLAY_NEW_INTERVAL_S, NEW_PATH_S = 0.2, 1.0
OVERLAY_FLOW_INTERVAL_S = 0.5
OVERLAY_INTERVAL_S = 1.0
OVERLAY_CALM_INTERVAL_S = 5.0
# A node that has just started looks as often as each second for so long.
STARTING_S = 20.0
# A path is found in some round trips where the member's agent is there too; the kinds of NAT that
# need birthday probing take some seconds.
HELD_S = 30.0
# How often this machine looks at its own addresses: a laptop moves between networks.
ADDRESSES_INTERVAL_S = 5.0
# A mesh that comes up changes many times a second; each write waits for the disk.
QUICK_FILE_INTERVAL_S = 3.0
# Members tell each other their records by gossip, beside the DHT: this is the topic.
TOPIC = "records"


class Neighbours:
    """Keeps WireGuard's peers what membership and discovery say, and knows who is connected."""

    def __init__(
        self,
        settings: Config,
        membership: Membership,
        overlay: Overlay,
        discovery: Discovery,
        traversal: Traversal,
        health: Health,
        *,
        learnt: Callable[[], None] = lambda: None,
    ) -> None:
        """`learnt` is called when the membership knows more than before."""
        self._settings = settings
        self._membership = membership
        self._overlay = overlay
        self._discovery = discovery
        self._traversal = traversal
        self._health = health
        self._tell_learnt = learnt
        mesh = membership.mesh
        self._table = PeerTable(membership.key.id, (mesh.ipv6_prefix, mesh.ipv4_network))
        self._learnt: dict[NodeId, MemberRecord] = {}  # each node's record as last taken in
        self._news = asyncio.Event()  # a member or an endpoint was learnt: WireGuard must follow
        self._routing_file = settings.state_dir / "discovery"
        self._paths = PathMemory(settings.state_dir / "paths.json")
        self._quick_file: WgQuickFile | None = None
        self._quick_file_at = float("-inf")
        self._flows = False  # packets flow to some peer
        self._new_path_at = float("-inf")
        self.addresses = _underlay_addresses(settings, membership)

    def interfaces(self) -> tuple[Interface, ...]:
        """Return this node's overlay addresses with the mesh's prefix lengths."""
        membership, mesh = self._membership, self._membership.mesh
        return (
            IPv6Interface((membership.ipv6, mesh.ipv6_prefix.prefixlen)),
            IPv4Interface((membership.ipv4, mesh.ipv4_network.prefixlen)),
        )

    def begin(self) -> None:
        """Read where members were reached before this start.

        What a WireGuard that was adopted has stays as it is for HELD_S, or until a path is found.
        """
        self._paths.load()
        peers = self._overlay.opened.peers
        self._table.hold(peers, time.time() + HELD_S)
        said = {member.node_id: member.wireguard_endpoints for member in self._membership.peers()}
        self._paths.take(direct_places(peers, said))

    async def enter_discovery(self) -> None:
        """Come back through whoever is remembered, and say where this node is."""
        raw = privatefile.read(self._routing_file, "discovery state")
        if raw is not None:
            try:
                self._discovery.load(raw)
            except StateError as error:
                # Only a short cut: the members' own endpoints lead back as well.
                _log.warning("%s is not used: %s", self._routing_file, error.message)
        port = self._settings.network.discovery_port
        named = [endpoint.with_port(text, port) for text in self._settings.network.bootstrap]
        known = [e for peer in self._membership.peers() for e in peer.discovery_endpoints]
        await self._discovery.bootstrap([*named, *known])
        await self.publish()

    async def publish(self) -> None:
        """Say where this node is, now and from now on."""
        network, certificate = self._settings.network, self._membership.certificate
        wireguard, control, discovery = (
            tuple(endpoint.join(address, port) for address in self.addresses)
            for port in (network.listen_port, network.control_port, network.discovery_port)
        )
        self._membership.add_member(
            certificate,
            time.time(),
            wireguard_endpoints=wireguard,
            control_addresses=control,
            discovery_endpoints=discovery,
        )
        await self._discovery.publish_member(
            MemberRecord(
                node=self._membership.key.id.ed25519,
                certificate=certificate.encode(),
                wireguard_endpoints=wireguard,
                control_addresses=control,
                discovery_endpoints=discovery,
            )
        )

    async def look_for_addresses(self) -> bool:
        """Publish anew when this machine's addresses have changed; say whether they have."""
        found = await asyncio.to_thread(_underlay_addresses, self._settings, self._membership)
        if found == self.addresses:
            return False
        _log.info("addresses changed from=%s to=%s", self.addresses, found)
        self.addresses = found
        self._discovery.addresses_changed()
        await self.publish()
        return True

    def remember(self) -> None:
        """Keep whom discovery knows, and where members are reached, for the next start."""
        if self._membership.peers():
            with contextlib.suppress(StateError):
                privatefile.replace(self._routing_file, self._discovery.save())
            self.remember_paths()

    def remember_paths(self) -> None:
        """Keep where members are reached, for the next start; that may come without a stop."""
        with contextlib.suppress(StateError):
            members = {member.node_id for member in self._membership.peers()}
            self._paths.save(self._traversal.places(), members)

    async def follow_membership(self) -> None:
        """Give WireGuard who is a member now, and take the others from it; at once."""
        for member in self._membership.peers():
            self._to_table(member)
        await self._apply()

    def found(self, record: MemberRecord) -> None:
        """Take in a member's record that discovery came by."""
        # Most records bring nothing new, and to check a certificate costs more than to get it.
        if record.id == self._membership.key.id or self._learnt.get(record.id) == record:
            return
        try:
            self._learn(record, time.time())
            self._learnt[record.id] = record
        except CoveyError as error:
            _log.warning("member record of %s is not used: %s", record.id, error.line())

    async def follow_overlay(self) -> None:
        """Keep the device in step, at once after news; runs until it is cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_again_s()):
                    await self._news.wait()
            self._news.clear()
            try:
                await self._apply()
                self._health.clear("overlay-down")
            except CoveyError as error:
                self._health.set(
                    HealthItem(
                        "overlay-down", "error", "WireGuard fails", error.message, error.hint
                    )
                )

    def _look_again_s(self) -> float:
        if time.monotonic() - self._new_path_at < NEW_PATH_S:
            return OVERLAY_NEW_INTERVAL_S
        if self._flows:
            return OVERLAY_FLOW_INTERVAL_S
        count = self.count()
        calm = count["connected"] + count["asleep"] == count["known"]
        return OVERLAY_CALM_INTERVAL_S if calm else OVERLAY_INTERVAL_S

    def paths_changed(self) -> None:
        """Give WireGuard other peers or endpoints now: the path engine chose them."""
        self._new_path_at = time.monotonic()
        self._news.set()

    def at(self, address: IPv4Address | IPv6Address) -> NodeId | None:
        """Return whose overlay address this is."""
        return self._table.at(address)

    def inside(self, host: str) -> bool:
        """Say whether an IP address lies in the overlay."""
        mesh, address = self._membership.mesh, _parsed(host)
        return address in (mesh.ipv6_prefix if address.version == 6 else mesh.ipv4_network)

    def asleep_at(self, host: str) -> bool:
        """Say whether an IP address is that of a member to which no path is kept."""
        node = self._table.at(_parsed(host))
        return node is not None and self._traversal.asleep(node)

    def overlay_addresses(self, nodes: Iterable[NodeId]) -> list[IPv4Address | IPv6Address]:
        """Return the overlay addresses of some members."""
        return self._table.addresses(nodes)

    async def follow_discovery(self) -> None:
        """Learn members as discovery finds them; runs until it is cancelled."""
        began = looked_at = time.monotonic()
        while True:
            for record in (await self._discovery.members()).values():
                self.found(record)
            if time.monotonic() - looked_at >= ADDRESSES_INTERVAL_S:
                looked_at = time.monotonic()
                await self.look_for_addresses()
            starting = time.monotonic() - began < STARTING_S
            await asyncio.sleep(1.0 if starting else DISCOVER_INTERVAL_S)

    def judge_clock(self, *, differs: bool) -> None:
        """Say that the clock may be wrong where every member's datagrams are refused for it.

        Or where all that members tell `differs` from it.
        """
        if self._discovery.contacts():
            self._health.clear("clock-differs")
        elif differs or self._discovery.counters.get("refused_clock"):
            self._health.set(
                HealthItem(
                    "clock-differs", "error", "The clock differs",
                    "members' clocks and this one are over two minutes apart, so neither side "
                    "hears the other's discovery.",
                    "Set this machine's clock (`date` shows it) and keep it right by NTP.",
                )
            )  # fmt: skip

    def connected(self, node: NodeId) -> bool:
        """Say whether WireGuard reaches a node now."""
        return self._table.connected(node, time.time())

    def heard(self, node: NodeId) -> Heard | None:
        """Return what the path engine knows of the path to a node; None where none is connected."""
        now = time.time()
        if not self._table.connected(node, now):
            return None
        path = self._traversal.describe(node)
        # Behind a NAT ports come and go, on the same path.
        at = path.get("relay") or self._table.host(node) or ""
        rtt_ms = path.get("path_rtt_ms")
        return Heard(
            f"{path.get('route', 'none')} {at}", None if rtt_ms is None else rtt_ms / 1000,
            path.get("path_jitter_ms", 0.0) / 1000, one_way(path.get("path_loss", 0.0)),
        )  # fmt: skip

    def traffic(self, node: NodeId) -> float | None:
        """Return what WireGuard carries to and from a node (bytes/s); None where nobody looked."""
        found = self._table.describe(node, time.time())
        rates = found["rx_bytes_s"], found["tx_bytes_s"]
        return None if None in rates else sum(rates)

    def nodes(self) -> list[NodeId]:
        """Return all other members."""
        return [member.node_id for member in self._others(time.time())]

    def count(self) -> dict[str, int]:
        """Return how many other members there are, are connected, and need no connection now."""
        nodes = [member.node_id for member in self._others(time.time())]
        return {
            "known": len(nodes),
            "connected": sum(self.connected(node) for node in nodes),
            "asleep": sum(self._traversal.asleep(node) for node in nodes),
        }

    def describe(self) -> list[dict[str, Any]]:
        """Describe the other members and how WireGuard reaches them, by name."""
        now, network = time.time(), self._membership.mesh.ipv4_network
        return [
            {
                "name": member.certificate.name,
                "node": str(member.node_id),
                "ipv6": str(member.certificate.ipv6),
                "ipv4": str(member.certificate.ipv4(network)),
                "roles": list(member.certificate.roles),
                "tags": list(member.certificate.tags),
                **self._table.describe(member.node_id, now),
                **self._traversal.describe(member.node_id),
            }
            for member in sorted(self._others(now), key=lambda m: m.certificate.name)
        ]

    def _others(self, now: float) -> list[Member]:
        live = self._membership.live_members(now)
        return [member for member in live if member.node_id != self._membership.key.id]

    async def _apply(self) -> None:
        now = time.time()
        states = await self._overlay.states()
        self._table.observe(states, now)
        self._flows = self._traversal.observe(states)
        blind = self._traversal.failed or self._traversal.deaf

        def is_member(node: NodeId) -> bool:
            return self._membership.is_member(node, now)

        fault: EnvironmentFault | None = None
        try:
            # First: a path that carries less must not get what the one before it carried.
            carried = [] if blind else self._table.mtus(is_member, self._traversal.mtu)
            await self._overlay.set_mtus(carried)
        except EnvironmentFault as error:
            fault = error
        configs = self._table.configs(is_member, now, None if blind else self._traversal.wish)
        await self._overlay.set_peers(configs)
        self._traversal.configured(frozenset(config.node_public for config in configs))
        self._write_quick_file(configs)
        if fault is not None:
            raise fault

    def _write_quick_file(self, configs: Sequence[PeerConfig]) -> None:
        """Keep the last good state as a wg-quick file, for an operator without Covey."""
        membership, network = self._membership, self._settings.network
        now = time.monotonic()
        if now < self._quick_file_at:
            return
        names = {m.node_id.wireguard_public: m.certificate.name for m in membership.peers()}
        content = WgQuickFile(
            DeviceConfig(
                membership.key.wireguard_private,
                self._overlay.listen_port,
                self.interfaces(),  # with the MTU that passes everywhere: nobody measures then
            ),
            tuple(
                dataclasses.replace(config, order=0, session=0)
                for config in configs
                if config.node_public in names
            ),
            names,
        )
        if content != self._quick_file:
            self._quick_file_at = now + QUICK_FILE_INTERVAL_S
            wgquick.write(self._settings.state_dir / f"{network.interface}.conf", content)
            self._quick_file = content

    def _learn(self, record: MemberRecord, now: float) -> None:
        known = self._membership.find(record.id)
        member = self._membership.add_member(
            Certificate.decode(record.certificate),
            now,
            wireguard_endpoints=record.wireguard_endpoints,
            control_addresses=record.control_addresses,
            discovery_endpoints=record.discovery_endpoints,
        )
        if member != known:
            self._to_table(member)
            self._news.set()
            self._tell_learnt()
            _log.info("member learnt name=%s node=%s", member.certificate.name, member.node_id)

    def _to_table(self, member: Member) -> None:
        candidates = [endpoint.split(text) for text in member.wireguard_endpoints]
        certificate = member.certificate
        self._table.learn(
            member.node_id,
            certificate.ipv6,
            certificate.ipv4(self._membership.mesh.ipv4_network),
            [(host, port) for host, port in candidates if _is_address(host)],
        )
        if candidates:
            self._traversal.introduce(
                member.node_id, self._table.candidates(member.node_id),
                self._paths.place(member.node_id),
            )  # fmt: skip


@lru_cache(4096)
def _parsed(host: str) -> IPv4Address | IPv6Address:
    return ip_address(host)


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
