"""Where in the DHT things stand: 20-byte keys that follow from the mesh and from names. A core.

A member's record stands under the member's own key, where anyone who knows the node finds it, and
in the listing, where all members are found by who knows none. The listing is a tree of sets: the
root, 16 sets below it by the first hex digit of the node's own key, 16 below each of those. A
member stands in the root if that has room, so that a small mesh is read from one set; and in any
case in the first set below it that has room, so that a large mesh is read whole, whoever has a
place in the root. The news is a set too: whoever comes and finds the root full stands there until
others newer than it have taken its place.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from agent.identity.keys import NodeId

# Room for 16 · 128 + 256 · 128 members.
LISTING_DEPTH = 2
_DIGITS = "0123456789abcdef"
# Keys remembered: each contact in an answer needs its own, and most come again and again.
_REMEMBERED = 16384


@lru_cache(_REMEMBERED)
def node_key(mesh_id: bytes, node: NodeId) -> bytes:
    """Return the node's own place in the DHT: it follows from its key."""
    return _sha1(b"covey-node\0" + mesh_id + node.ed25519)


def member_key(mesh_id: bytes, node: NodeId) -> bytes:
    """Return the DHT key of a node's member record."""
    return _sha1(b"covey-member\0" + mesh_id + node.ed25519)


def service_key(mesh_id: bytes, service: str) -> bytes:
    """Return the DHT key of a service's set of providers."""
    return _sha1(b"covey-service\0" + mesh_id + service.encode())


@lru_cache(_REMEMBERED)
def listing_key(mesh_id: bytes, prefix: str) -> bytes:
    """Return the DHT key of the members whose own keys begin with these hex digits."""
    return _sha1(b"covey-members\0" + mesh_id + prefix.encode())


@lru_cache
def news_key(mesh_id: bytes) -> bytes:
    """Return the DHT key of the members that came last."""
    return _sha1(b"covey-news\0" + mesh_id)


def listing_path(mesh_id: bytes, node: NodeId) -> tuple[bytes, ...]:
    """Return the keys of the sets where the node may be listed, the root first."""
    digits = node_key(mesh_id, node).hex()
    return tuple(listing_key(mesh_id, digits[:depth]) for depth in range(LISTING_DEPTH + 1))


def listing_below(prefix: str) -> tuple[str, ...]:
    """Return the prefixes of the 16 sets below one; none at the bottom."""
    return tuple(prefix + digit for digit in _DIGITS) if len(prefix) < LISTING_DEPTH else ()


def _sha1(data: bytes) -> bytes:
    """Return SHA-1 as Kademlia's 160-bit key; nothing rests on its collision resistance."""
    return hashlib.sha1(data, usedforsecurity=False).digest()
