"""What crosses to the trio side about the mesh: members, network keys, wanted links. A core.

`host.py` packs it and `node.py` unpacks it: between the two cross bytes, numbers and strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from agent.identity.keys import SEED_BYTES, NodeId
from agent.membership.networkkeys import KEY_BYTES, NetworkKeys


@dataclass(frozen=True)
class Setup:
    """Everything that a node's trio side is made with."""

    seed: bytes = field(repr=False)
    keys: NetworkKeys
    listen: Sequence[str]
    # protocol → whether strangers are answered too
    protocols: Mapping[str, bool]
    topics: Sequence[str]
    members: bytes


@dataclass(frozen=True)
class Link:
    """One connection to a member: the other end's HOST:PORT, who dialled, and for how long."""

    node: NodeId
    address: str
    outbound: bool
    age_s: float


def encode_links(links: Iterable[Link]) -> bytes:
    """Return links, packed."""
    return msgspec.msgpack.encode(
        [(each.node.ed25519, each.address, each.outbound, each.age_s) for each in links]
    )


def decode_links(packed: bytes) -> list[Link]:
    """Return what `encode_links` packed."""
    found = msgspec.msgpack.decode(packed, type=list[tuple[bytes, str, bool, float]])
    return [Link(NodeId(n), address, outbound, age_s) for n, address, outbound, age_s in found]


def encode_members(nodes: Iterable[NodeId]) -> bytes:
    """Return the ids, one after the other."""
    return b"".join(sorted(node.ed25519 for node in nodes))


def decode_members(packed: bytes) -> frozenset[bytes]:
    """Return the ids that `encode_members` packed."""
    return frozenset(packed[at : at + SEED_BYTES] for at in range(0, len(packed), SEED_BYTES))


def encode_keys(keys: NetworkKeys) -> bytes:
    """Return the sending key, then those that are accepted, newest first."""
    return keys.sending + b"".join(keys.accepting)


def decode_keys(packed: bytes) -> NetworkKeys:
    """Return the keys that `encode_keys` packed."""
    keys = [packed[at : at + KEY_BYTES] for at in range(0, len(packed), KEY_BYTES)]
    return NetworkKeys(keys[0], tuple(keys[1:]))


def encode_wanted(wanted: Mapping[NodeId, Sequence[str]]) -> bytes:
    """Return nodes with their addresses, packed."""
    return msgspec.msgpack.encode([(n.ed25519, list(a)) for n, a in wanted.items()])


def decode_wanted(packed: bytes) -> dict[NodeId, list[str]]:
    """Return what `encode_wanted` packed."""
    found = msgspec.msgpack.decode(packed, type=list[tuple[bytes, list[str]]])
    return {NodeId(node): addresses for node, addresses in found}
