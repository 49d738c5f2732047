"""Overlay addresses, computed by everyone from the mesh id and a node id (design §3). A core."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from agent.identity.keys import NodeId

DEFAULT_IPV4_NETWORK = IPv4Network("10.77.0.0/16")


def mesh_id(root: NodeId) -> bytes:
    """Return the mesh id (32 bytes): SHA-256 of the root's Ed25519 public key."""
    return hashlib.sha256(root.ed25519).digest()


def mesh_prefix(mesh: bytes) -> IPv6Network:
    """Return the mesh's unique local /48: fd and 40 bits of SHA-256 over the mesh id (RFC 4193)."""
    global_id = hashlib.sha256(mesh).digest()[:5]
    return IPv6Network((b"\xfd" + global_id + bytes(10), 48))


def overlay_ipv6(mesh: bytes, node: NodeId) -> IPv6Address:
    """Return the node's canonical address: the /48, subnet 0, 64 bits of SHA-256 over its key."""
    interface_id = hashlib.sha256(node.wireguard_public).digest()[:8]
    prefix = mesh_prefix(mesh).network_address.packed[:8]
    return IPv6Address(prefix + interface_id)


def overlay_ipv4(network: IPv4Network, node: NodeId, counter: int) -> IPv4Address:
    """Return the node's convenience address for the counter (0 … 65535) in its certificate.

    The host part is SHA-256(key ‖ counter) reduced to the network's usable hosts, so never the
    network's own or its broadcast address. Raises ValueError for a network under four addresses.
    """
    usable = network.num_addresses - 2
    if usable < 2:
        raise ValueError(f"{network} is too small for a mesh")
    digest = hashlib.sha256(node.wireguard_public + counter.to_bytes(2, "big")).digest()
    return network.network_address + 1 + int.from_bytes(digest[:8], "big") % usable
