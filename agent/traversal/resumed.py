"""Where an adopted WireGuard reaches members directly. A core; see `memory.py` for other starts.

An endpoint may be a relay's place, or one of this machine's where a tunnel begins: neither is the
member's own. So one at whose address another member says that it is, counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from agent import endpoint as endpoints
from agent.identity.keys import NodeId
from agent.overlay.device import PeerConfig
from agent.paths.messages import Place


def direct_places(
    peers: Iterable[PeerConfig], said: Mapping[NodeId, Iterable[str]]
) -> dict[NodeId, Place]:
    """Return where members are, by the device's peers; `said`: HOST:PORT of each by its record."""
    hosts: dict[str, set[NodeId]] = {}
    for node, places in said.items():
        for place in places:
            hosts.setdefault(endpoints.split(place)[0], set()).add(node)
    nodes = {node.wireguard_public: node for node in said}
    found: dict[NodeId, Place] = {}
    for peer in peers:
        member = nodes.get(peer.node_public)
        if member is None or peer.endpoint is None:
            continue
        host = peer.endpoint[0]
        if not ip_address(host).is_loopback and hosts.get(host, set()) <= {member}:
            found[member] = peer.endpoint
    return found
