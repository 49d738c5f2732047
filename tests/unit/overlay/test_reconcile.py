"""The difference: what is wanted is reached, and nothing else is touched."""

from __future__ import annotations

from ipaddress import IPv4Network

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.overlay.device import PeerConfig
from agent.overlay.reconcile import Change, RemovePeer, SetPeer, differences

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))
NETWORKS = [IPv4Network((f"10.77.0.{number}", 32)) for number in range(4)]


def changes(
    applied: dict[bytes, PeerConfig], present: set[bytes], wanted: list[PeerConfig]
) -> list[Change]:
    return [change for change, _ in differences(applied, present, wanted)]


def test_the_same_is_no_change_in_any_order() -> None:
    before = PeerConfig(A, ("192.0.2.1", 1), (NETWORKS[0], NETWORKS[1]), 25)
    again = PeerConfig(A, ("192.0.2.1", 1), (NETWORKS[1], NETWORKS[0]), 25)
    assert changes({A: before}, {A}, [again]) == []


def test_only_what_changed_is_set() -> None:
    before = PeerConfig(A, ("192.0.2.1", 1), (NETWORKS[0],), 25)
    assert changes({A: before}, {A}, [PeerConfig(A, ("192.0.2.2", 1), (NETWORKS[0],), 25)]) == [
        SetPeer(A, ("192.0.2.2", 1), None, None)
    ]
    assert changes({A: before}, {A}, [PeerConfig(A, ("192.0.2.1", 1), (), 0)]) == [
        SetPeer(A, None, (), 0)
    ]


def test_no_endpoint_any_more_leaves_the_last_one() -> None:
    before = PeerConfig(A, ("192.0.2.1", 1), (), 0)
    assert changes({A: before}, {A}, [PeerConfig(A)]) == []


def test_peers_that_others_added_or_removed() -> None:
    config = PeerConfig(A, None, (NETWORKS[0],), 0)
    assert changes({A: config}, {C}, [config]) == [
        RemovePeer(C),
        SetPeer(A, None, (NETWORKS[0],), 0),
    ]


peer_lists = st.lists(
    st.builds(
        PeerConfig,
        st.sampled_from([A, B, C]),
        st.none() | st.tuples(st.just("192.0.2.1"), st.integers(1, 3)),
        st.lists(st.sampled_from(NETWORKS), unique=True).map(tuple),
        st.integers(0, 2),
    ),
    unique_by=lambda peer: peer.node_public,
)


@settings(max_examples=60, deadline=None)
@given(peer_lists, peer_lists)
def test_changes_lead_from_any_state_to_any_other(
    first: list[PeerConfig], second: list[PeerConfig]
) -> None:
    applied: dict[bytes, PeerConfig] = {}
    device: dict[bytes, PeerConfig] = {}
    for wanted in (first, second):
        for change, now in list(differences(applied, set(device), wanted)):
            if isinstance(change, RemovePeer):
                assert now is None
                del device[change.public_key]
                applied.pop(change.public_key)
                continue
            assert now is not None
            before = device.get(change.public_key, PeerConfig(change.public_key))
            device[change.public_key] = PeerConfig(
                change.public_key,
                before.endpoint if change.endpoint is None else change.endpoint,
                before.allowed_ips if change.allowed_ips is None else change.allowed_ips,
                before.keepalive_s if change.keepalive_s is None else change.keepalive_s,
            )
            applied[change.public_key] = now
        assert set(device) == {peer.node_public for peer in wanted}
        for peer in wanted:
            now_set = device[peer.node_public]
            assert set(now_set.allowed_ips) == set(peer.allowed_ips)
            assert now_set.keepalive_s == peer.keepalive_s
            assert peer.endpoint is None or now_set.endpoint == peer.endpoint
        assert changes(applied, set(device), wanted) == []
