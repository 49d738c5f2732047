"""A device without a network, for tests of everything that uses one.

A core. `FakeUnderlay` carries packets between fake devices as WireGuard would: the receiver must
know the sender's key and own the address, allowed addresses are checked on both sides, a first
packet is a handshake, and the receiver learns the sender's endpoint (roaming).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

import nacl.bindings

from agent.errors import EnvironmentFault
from agent.overlay.device import (
    DEFAULT_MTU,
    DeviceConfig,
    Endpoint,
    Interface,
    Network,
    Opened,
    PeerConfig,
    PeerState,
    canonical,
    check_config,
    check_name,
    check_peers,
)
from agent.overlay.reconcile import Change, RemovePeer, SetPeer, differences

# What a device gives itself when it is asked for any free port.
_FIRST_FREE_PORT = 40000
# An echo request of 56 bytes and its IPv4 header; the figure only has to be above zero.
_PACKET_BYTES = 84


@dataclass
class _Peer:
    config: PeerConfig
    endpoint: Endpoint | None = None
    last_handshake: float | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0


class FakeUnderlay:
    """Hosts by address, ports taken on each, and the time (unix seconds) of handshakes."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now
        self.listening: dict[Endpoint, FakeDevice] = {}
        self.interfaces: dict[tuple[str, str], bytes] = {}
        """Interfaces by (host's name, interface name): the public key of the owner."""
        self.ports: set[tuple[str, int]] = set()
        """UDP ports that something else holds, by (host's name, port)."""
        self.left: dict[tuple[str, str], FakeDevice] = {}
        """Devices of killed agents that still work, by (host's name, interface name)."""


class FakeDevice:
    """A device on an underlay; see `Device`. `host` is where it is, `move` changes that."""

    kind = "fake"

    def __init__(
        self,
        name: str = "covey0",
        underlay: FakeUnderlay | None = None,
        host: str = "192.0.2.1",
        machine: str = "",
    ) -> None:
        check_name(name)
        self._name = name
        self._machine = machine or host
        self.underlay = FakeUnderlay() if underlay is None else underlay
        self.host = host
        self.birth = 1
        self.opened = 0
        """How often the device was opened."""
        self.changes: list[Change] = []
        """Every change that `apply` made, in order."""
        self._config: DeviceConfig | None = None
        self._listen_port = 0
        self.routed: dict[Network, int] = {}
        """The MTUs that `route` gave last."""
        self._applied: dict[bytes, PeerConfig] = {}
        self._peers: dict[bytes, _Peer] = {}
        self._broken: str | None = None

    @property
    def name(self) -> str:
        """The interface's name."""
        return self._name

    @property
    def listen_port(self) -> int:
        """The UDP port in use; 0 while closed."""
        return self._listen_port

    @property
    def config(self) -> DeviceConfig:
        """What it was opened with; EnvironmentFault while closed."""
        if self._config is None:
            raise EnvironmentFault(f"interface {self._name} is not up")
        return self._config

    @property
    def public_key(self) -> bytes:
        """Its own WireGuard public key (32 bytes)."""
        return nacl.bindings.crypto_scalarmult_base(self.config.private_key)

    def open(
        self,
        private_key: bytes,
        listen_port: int,
        addresses: Sequence[Interface],
        mtu: int = DEFAULT_MTU,
    ) -> Opened:
        """See `Device.open`."""
        if self._config is not None:
            raise ValueError(f"{self._name} is open already")
        config = DeviceConfig(private_key, listen_port, tuple(addresses), mtu)
        check_config(config)
        public = nacl.bindings.crypto_scalarmult_base(private_key)
        owner = self.underlay.interfaces.get((self._machine, self._name), public)
        if owner != public:
            raise EnvironmentFault(
                f"interface {self._name} exists already and belongs to something else (kind fake)"
            )
        left = self.underlay.left.pop((self._machine, self._name), None)
        if left is not None and listen_port in (0, left.listen_port):
            return self._adopt(left, config)
        if left is not None:
            left.close()
        port = listen_port or _FIRST_FREE_PORT
        if (self._machine, port) in self.underlay.ports:
            raise EnvironmentFault(f"UDP port {port} is in use")
        self.underlay.interfaces[self._machine, self._name] = public
        self._config, self._listen_port, self._broken = config, port, None
        self.underlay.listening[self.host, port] = self
        self.opened += 1
        return Opened(self.birth)

    def apply(self, peers: Sequence[PeerConfig]) -> None:
        """See `Device.apply`."""
        self._require_working()
        check_peers(peers, self.public_key)
        for change, now in list(differences(self._applied, set(self._peers), peers)):
            self.changes.append(change)
            if isinstance(change, RemovePeer):
                self._peers.pop(change.public_key)
                self._applied.pop(change.public_key, None)
            elif now is not None:
                self._set(change, now)

    def route(self, mtus: Mapping[Network, int]) -> None:
        """See `Device.route`."""
        self._require_working()
        self.routed = dict(mtus)

    def peers(self) -> list[PeerState]:
        """See `Device.peers`."""
        self._require_working()
        return [
            PeerState(key, peer.endpoint, peer.last_handshake, peer.rx_bytes, peer.tx_bytes)
            for key, peer in self._peers.items()
        ]

    def failure(self) -> str | None:
        """See `Device.failure`."""
        return "the device is closed" if self._config is None else self._broken

    def refresh(self) -> None:
        """See `Device.refresh`; the fake finds its addresses by itself."""

    def close(self) -> None:
        """See `Device.close`."""
        if self._config is None:
            return
        self.underlay.listening.pop((self.host, self._listen_port), None)
        self.underlay.interfaces.pop((self._machine, self._name), None)
        self._config, self._listen_port, self._broken = None, 0, None
        self._applied.clear()
        self.routed = {}
        self._peers.clear()

    def outlive(self) -> None:
        """Go on alone, as when the agent is killed, for the next device of that name."""
        if self._config is None:
            return
        alone = FakeDevice(self._name, self.underlay, self.host, self._machine)
        alone.birth, alone._config, alone._listen_port = self.birth, self._config, self._listen_port
        alone._peers, self._peers = self._peers, {}
        self.underlay.listening[self.host, self._listen_port] = alone
        self.underlay.left[self._machine, self._name] = alone
        self._config, self._listen_port = None, 0
        self._applied.clear()
        self.routed = {}

    def _adopt(self, left: FakeDevice, config: DeviceConfig) -> Opened:
        self._config, self._listen_port, self._broken = config, left.listen_port, None
        self._peers, self.birth = left._peers, left.birth
        peers = tuple(
            replace(peer.config, endpoint=peer.endpoint, order=0, session=0)
            for peer in self._peers.values()
        )
        self._applied = {peer.node_public: peer for peer in peers}
        self.underlay.listening[self.host, self._listen_port] = self
        self.opened += 1
        return Opened(self.birth, peers, adopted=True)

    def break_down(self, reason: str = "the device broke") -> None:
        """Stop working, as a device whose process was killed."""
        self.underlay.listening.pop((self.host, self._listen_port), None)
        self._broken = reason

    def move(self, host: str) -> None:
        """Be at another underlay address from now on."""
        if self.underlay.listening.pop((self.host, self._listen_port), None) is self:
            self.underlay.listening[host, self._listen_port] = self
        self.host = host

    def ping(self, address: IPv4Address | IPv6Address) -> bool:
        """Say whether a packet to the overlay address is answered."""
        remote = self._send(address)
        if remote is None:
            return False
        own = next(i.ip for i in self.config.addresses if i.version == address.version)
        return remote._send(own) is self

    def _send(self, address: IPv4Address | IPv6Address) -> FakeDevice | None:
        """Send a packet to an overlay address; return the device that took it."""
        peer = next((p for p in self._peers.values() if _allows(p, address)), None)
        if peer is None or peer.endpoint is None or self._broken is not None:
            return None
        peer.tx_bytes += _PACKET_BYTES
        remote = self.underlay.listening.get(peer.endpoint)
        if remote is None or remote.public_key != peer.config.node_public:
            return None
        back = remote._peers.get(self.public_key)
        own = next((i.ip for i in self.config.addresses if i.version == address.version), None)
        if back is None:
            return None
        back.endpoint = (self.host, self._listen_port)
        back.last_handshake = back.last_handshake or self.underlay.now
        peer.last_handshake = peer.last_handshake or self.underlay.now
        owned = any(address == interface.ip for interface in remote.config.addresses)
        if own is None or not owned or not _allows(back, own):
            return None
        back.rx_bytes += _PACKET_BYTES
        return remote

    def _set(self, change: SetPeer, now: PeerConfig) -> None:
        peer = self._peers.setdefault(change.public_key, _Peer(now))
        peer.config = replace(now)
        if change.endpoint is not None:
            peer.endpoint = canonical(change.endpoint)
        self._applied[change.public_key] = now

    def _require_working(self) -> None:
        if self.failure() is not None:
            raise EnvironmentFault(f"interface {self._name} is not up")


def _allows(peer: _Peer, address: IPv4Address | IPv6Address) -> bool:
    return any(address in network for network in peer.config.allowed_ips)
