"""The one protocol behind which every WireGuard device stands, and the types that cross it.

A core: types and checks, no I/O. `kernel.py`, `userspace.py` and `fake.py` implement `Device`;
`shell.py` is its only caller. Not for choosing endpoints (endpoints.py) or NATs (the path engine).

Routes: addresses carry the mesh's network length (IPv6 /48, IPv4 usually /16), and a route makes
the whole mesh on-link with an MTU of 1280; peers whose paths carry more get their own (routes.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from typing import Protocol

from agent import endpoint as endpoints
from agent.errors import UsageError

KEY_BYTES = 32
# IPv6's minimum: fits every underlay until the path engine has measured more (design §7).
DEFAULT_MTU = 1280
# WireGuard's field is 16 bits of seconds.
_KEEPALIVE_MAX_S = 65535
# What `wg-quick` accepts as an interface name; 15 is the kernel's limit.
_NAME = re.compile(r"[A-Za-z0-9_=+.-]{1,15}")

Endpoint = tuple[str, int]
"""A numeric IP address and a UDP port (1 … 65535)."""

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class PeerConfig:
    """What a peer shall be: its WireGuard public key, where it is, and which addresses are its own.

    `node_public`: 32 bytes X25519 (`NodeId.wireguard_public`). `endpoint`: None leaves the peer
    to call us first. `keepalive_s`: 0 … 65535 seconds, 0 sends none. `order`: another one has the
    same endpoint set again, if WireGuard roamed from it and shall come back. `session`: another one
    has the peer taken away and added anew, with another handshake.
    """

    node_public: bytes
    endpoint: Endpoint | None = None
    allowed_ips: tuple[Network, ...] = ()
    keepalive_s: int = 0
    order: int = 0
    session: int = 0


@dataclass(frozen=True)
class PeerState:
    """What a device knows about a peer: last handshake in unix seconds (None: never), bytes."""

    public_key: bytes
    endpoint: Endpoint | None
    last_handshake: float | None
    rx_bytes: int
    tx_bytes: int


@dataclass(frozen=True)
class DeviceConfig:
    """The arguments of `Device.open`, kept so that a device can be opened again."""

    private_key: bytes = field(repr=False)
    listen_port: int
    addresses: tuple[Interface, ...]
    mtu: int = DEFAULT_MTU


@dataclass(frozen=True)
class Opened:
    """What `Device.open` came upon: the interface's number, and the peers that it has already.

    `birth` stays for as long as the interface does, below 2**32. There are peers only where
    the interface of a killed agent was `adopted`.
    """

    birth: int
    peers: tuple[PeerConfig, ...] = ()
    adopted: bool = False


class Device(Protocol):
    """A WireGuard interface. Every method blocks; call them all from one worker thread.

    Faults of this machine are EnvironmentFault, wrong arguments ValueError.
    """

    @property
    def name(self) -> str:
        """The interface's name."""

    @property
    def kind(self) -> str:
        """`kernel`, `userspace` or `fake`."""

    @property
    def listen_port(self) -> int:
        """The UDP port in use; 0 while closed."""

    def open(
        self,
        private_key: bytes,
        listen_port: int,
        addresses: Sequence[Interface],
        mtu: int = DEFAULT_MTU,
    ) -> Opened:
        """Make the interface with its addresses and bring it up, without peers.

        `mtu` is the most that `route` can give; the addresses' networks get 1280.
        `listen_port` 0 takes any free port. Where a killed agent of ours left an interface with the
        same name that works and has that port, it is adopted with its peers: no packet is lost, and
        addresses and MTU become these. Else what was left is removed first. An interface that is
        not ours is an EnvironmentFault. On a fault nothing is left.
        """

    def apply(self, peers: Sequence[PeerConfig]) -> None:
        """Make `peers` the device's peers by difference: what did not change is not touched."""

    def route(self, mtus: Mapping[Network, int]) -> None:
        """Make these the networks with a route and an MTU of their own, by difference."""

    def peers(self) -> list[PeerState]:
        """Return the state of every peer."""

    def failure(self) -> str | None:
        """Say why the device no longer works (its process ended, its link is gone), else None."""

    def refresh(self) -> None:
        """Do what the backend needs when this machine's underlay addresses have changed.

        Call it about once a second; it costs next to nothing when nothing changed.
        """

    def close(self) -> None:
        """Remove interface, process and socket; closing twice does nothing."""


def check_name(name: str) -> None:
    """Raise ValueError for what cannot be an interface's name."""
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        raise ValueError(f"{name!r} cannot be an interface name")


def check_config(config: DeviceConfig) -> None:
    """Raise ValueError for a key, port, address list or MTU that no device can take."""
    if len(config.private_key) != KEY_BYTES:
        raise ValueError(f"a private key holds 32 bytes, not {len(config.private_key)}")
    if not 0 <= config.listen_port <= 65535:
        raise ValueError(f"{config.listen_port} is not a UDP port")
    if not config.addresses:
        raise ValueError("an interface needs an address")
    if not DEFAULT_MTU <= config.mtu <= 65535:
        raise ValueError(f"MTU {config.mtu} is outside 1280 … 65535, IPv6 needs 1280")


def check_peers(peers: Sequence[PeerConfig], own_public: bytes) -> None:
    """Raise ValueError for a wrong key, a key or network given twice, or a bad endpoint."""
    keys: set[bytes] = {own_public}
    networks: set[Network] = set()
    for peer in peers:
        if len(peer.node_public) != KEY_BYTES:
            raise ValueError(f"a public key holds 32 bytes, not {len(peer.node_public)}")
        if peer.node_public in keys:
            raise ValueError(f"peer {peer.node_public.hex()} is given twice or is this node")
        keys.add(peer.node_public)
        if not 0 <= peer.keepalive_s <= _KEEPALIVE_MAX_S:
            raise ValueError(f"{peer.keepalive_s} s is not a keepalive")
        for network in peer.allowed_ips:
            if network in networks:
                raise ValueError(f"{network} is given to two peers")
            networks.add(network)
        if peer.endpoint is not None:
            check_endpoint(peer.endpoint)


def check_endpoint(endpoint: Endpoint) -> None:
    """Raise ValueError unless the endpoint is a numeric address without zone, and a port."""
    host, port = endpoint
    address = ip_address(host)
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{host}: an endpoint has no zone")
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is not a UDP port")


def canonical(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with its address as Python writes it; IPv4-mapped IPv6 becomes IPv4."""
    address = ip_address(endpoint[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped), endpoint[1]
    return str(address), endpoint[1]


def parse_endpoint(text: str) -> Endpoint:
    """Read HOST:PORT as a device or a file wrote it; raises ValueError."""
    try:
        return endpoints.split(text)
    except UsageError as error:
        raise ValueError(error.message) from None
