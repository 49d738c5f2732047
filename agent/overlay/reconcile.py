"""The difference between the peers a device has and the peers it shall have. A core.

Used by every device's `apply`. Endpoints are compared with what *we* last asked for, not with what
the device shows: WireGuard roams, and repeating an old wish must not undo that. A new `order` does,
and a new `session` takes the peer away first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.overlay.device import Endpoint, Network, PeerConfig


@dataclass(frozen=True)
class RemovePeer:
    """Take this peer away."""

    public_key: bytes


@dataclass(frozen=True)
class SetPeer:
    """Add or change this peer; None leaves that part as it is, a list replaces the whole list."""

    public_key: bytes
    endpoint: Endpoint | None
    allowed_ips: tuple[Network, ...] | None
    keepalive_s: int | None


Change = RemovePeer | SetPeer


def differences(
    applied: Mapping[bytes, PeerConfig],
    present: Collection[bytes],
    wanted: Sequence[PeerConfig],
) -> Iterator[tuple[Change, PeerConfig | None]]:
    """Yield each change with the configuration that then holds (None: the peer is gone).

    `applied`: what we set before, by public key. `present`: the keys that the device really has;
    a peer that someone else removed is added again, one that someone else added is removed.
    Removals come first, so that an address is free before another peer takes it.
    """
    keys = {peer.node_public for peer in wanted}
    for public_key in sorted(present):
        if public_key not in keys:
            yield RemovePeer(public_key), None
    for peer in wanted:
        before = applied.get(peer.node_public) if peer.node_public in present else None
        if before is not None and before.session != peer.session:
            yield RemovePeer(peer.node_public), None
            before = None
        change = _change(before, peer)
        if change is not None:
            yield change, peer


def _change(before: PeerConfig | None, peer: PeerConfig) -> SetPeer | None:
    if before is None:
        return SetPeer(peer.node_public, peer.endpoint, peer.allowed_ips, peer.keepalive_s)
    change = SetPeer(
        peer.node_public,
        endpoint=(
            peer.endpoint
            if (peer.endpoint, peer.order) != (before.endpoint, before.order)
            else None
        ),
        allowed_ips=(
            peer.allowed_ips if set(peer.allowed_ips) != set(before.allowed_ips) else None
        ),
        keepalive_s=peer.keepalive_s if peer.keepalive_s != before.keepalive_s else None,
    )
    parts = (change.endpoint, change.allowed_ips, change.keepalive_s)
    return None if all(part is None for part in parts) else change
