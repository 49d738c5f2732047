"""Which member comes first for a deployment: rendezvous hashing. A core.

Every node computes the same order from the same members, without asking anyone; a member that comes
or goes moves only those deployments that it is first for (Thaler, Ravishankar 1998).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from agent.identity.keys import NodeId

_PREFIX = b"covey-owner-v1\0"


@lru_cache(maxsize=1 << 16)  # 64 deployments on 1,000 nodes
def weight(name: str, node: NodeId) -> bytes:
    """Return the node's weight for the deployment `name` (32 bytes); the highest comes first."""
    return hashlib.sha256(_PREFIX + name.encode() + b"\0" + node.ed25519).digest()


def order(name: str, nodes: Iterable[NodeId]) -> tuple[NodeId, ...]:
    """Return the nodes in the order in which they own the deployment `name`."""
    return tuple(sorted(nodes, key=lambda node: weight(name, node), reverse=True))


def above(name: str, one: NodeId, other: NodeId) -> bool:
    """Say whether `one` comes before `other` for the deployment `name`."""
    return weight(name, one) > weight(name, other)
