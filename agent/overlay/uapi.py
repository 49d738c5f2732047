"""The text of WireGuard's cross-platform configuration protocol. A core: `userspace.py` sends it.

Source: wireguard.com/xplatform. A request is lines `key=value` and an empty line; an answer ends
with `errno=N` (wireguard-go writes it negative) and an empty line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network

from agent import endpoint as endpoints
from agent.overlay.device import Network, PeerConfig, PeerState, canonical, parse_endpoint
from agent.overlay.reconcile import Change, RemovePeer

GET = b"get=1\n\n"
_END = b"\n\n"


@dataclass(frozen=True)
class Answer:
    """A parsed answer: the positive errno (0: done), the device's key and port, its peers."""

    errno: int
    private_key: bytes = field(default=b"", repr=False)
    listen_port: int = 0
    peers: tuple[PeerState, ...] = ()
    configs: tuple[PeerConfig, ...] = ()
    """The same peers, as they could have been set."""


def complete(data: bytes) -> bool:
    """Say whether `data` holds a whole answer."""
    return data.endswith(_END) and b"errno=" in data


def encode_device(private_key: bytes | None = None, listen_port: int | None = None) -> bytes:
    """Return the request that sets the device's own values; None leaves one as it is."""
    lines = ["set=1"]
    if private_key is not None:
        lines.append(f"private_key={private_key.hex()}")
    if listen_port is not None:
        lines.append(f"listen_port={listen_port}")
    return _request(lines)


def encode_change(change: Change) -> bytes:
    """Return the request that carries out one change of a peer."""
    lines = ["set=1", f"public_key={change.public_key.hex()}"]
    if isinstance(change, RemovePeer):
        lines.append("remove=true")
        return _request(lines)
    if change.endpoint is not None:
        lines.append(f"endpoint={endpoints.join(*change.endpoint)}")
    if change.keepalive_s is not None:
        lines.append(f"persistent_keepalive_interval={change.keepalive_s}")
    if change.allowed_ips is not None:
        lines.append("replace_allowed_ips=true")
        lines.extend(f"allowed_ip={network}" for network in change.allowed_ips)
    return _request(lines)


def decode(data: bytes) -> Answer:
    """Read an answer; raises ValueError when it is not one."""
    device: dict[str, str] = {}
    peers: list[dict[str, str]] = []
    networks: list[list[Network]] = []
    errno: int | None = None
    section = device
    for key, value in _pairs(data):
        if key == "public_key":
            section = {}
            peers.append(section)
            networks.append([])
        if key == "allowed_ip" and networks:
            networks[-1].append(ip_network(value))
        if key == "errno":
            errno = abs(int(value))
        section[key] = value
    if errno is None:
        raise ValueError("an answer without errno")
    return Answer(
        errno,
        bytes.fromhex(device.get("private_key", "")),
        int(device.get("listen_port", "0")),
        tuple(_peer(fields) for fields in peers),
        tuple(_config(fields, own) for fields, own in zip(peers, networks, strict=True)),
    )


def _pairs(data: bytes) -> Iterator[tuple[str, str]]:
    for line in data.decode().splitlines():
        if line:
            key, separator, value = line.partition("=")
            if not separator:
                raise ValueError(f"not a key and a value: {key!r}")
            yield key, value


def _peer(fields: dict[str, str]) -> PeerState:
    seconds = int(fields.get("last_handshake_time_sec", "0"))
    nanoseconds = int(fields.get("last_handshake_time_nsec", "0"))
    endpoint = fields.get("endpoint")
    return PeerState(
        bytes.fromhex(fields["public_key"]),
        canonical(parse_endpoint(endpoint)) if endpoint else None,
        seconds + nanoseconds / 1e9 if seconds or nanoseconds else None,
        int(fields.get("rx_bytes", "0")),
        int(fields.get("tx_bytes", "0")),
    )


def _config(fields: dict[str, str], networks: list[Network]) -> PeerConfig:
    endpoint = fields.get("endpoint")
    return PeerConfig(
        bytes.fromhex(fields["public_key"]),
        canonical(parse_endpoint(endpoint)) if endpoint else None,
        tuple(networks),
        int(fields.get("persistent_keepalive_interval", "0")),
    )


def _request(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n\n").encode()
