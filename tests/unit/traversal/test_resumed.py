"""Of an adopted WireGuard's endpoints only those count that are the members' own."""

from __future__ import annotations

from agent.identity.keys import NodeId, NodeKey
from agent.overlay.device import Endpoint, PeerConfig
from agent.traversal.resumed import direct_places

ANNA, BEN, CARL = (NodeKey(bytes([n]) * 32).id for n in (1, 2, 3))


def peer(node: NodeId, endpoint: Endpoint | None) -> PeerConfig:
    return PeerConfig(node.wireguard_public, endpoint)


def test_a_place_counts_unless_another_member_is_at_that_address() -> None:
    said = {ANNA: ["192.168.1.2:51820"], BEN: ["203.0.113.7:51820"], CARL: ["[2001:db8::3]:51820"]}
    nat = ("198.51.100.9", 40_000)
    assert direct_places([peer(ANNA, nat)], said) == {ANNA: nat}
    own = ("203.0.113.7", 51821)
    assert direct_places([peer(BEN, own)], said) == {BEN: own}
    assert direct_places([peer(ANNA, own)], said) == {}, "BEN relays"
    assert direct_places([peer(ANNA, ("2001:db8::3", 9))], said) == {}
    assert direct_places([peer(ANNA, ("127.0.0.1", 4000))], said) == {}, "a tunnel begins there"


def test_strangers_and_peers_without_an_endpoint_are_nowhere() -> None:
    assert direct_places([peer(ANNA, ("198.51.100.9", 1))], {BEN: []}) == {}
    assert direct_places([peer(BEN, None)], {BEN: []}) == {}
