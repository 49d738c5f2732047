"""What every device must do, on each backend (see conftest)."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from agent.errors import EnvironmentFault

pytestmark = pytest.mark.slow

A6, A4 = "fd12:3456:789a::1", "10.77.1.1"
B6, B4 = "fd12:3456:789a::2", "10.77.2.2"


def test_open_gives_addresses_and_port_and_no_peers(pair: Any) -> None:
    device = pair.open(0)
    assert device.listen_port == 51820
    assert device.peers() == []
    assert device.failure() is None
    assert pair.shown_addresses(0) == {f"{A6}/48", f"{A4}/16"}


def test_traffic_flows_both_ways_over_both_families(pair: Any) -> None:
    first, second = pair.up()
    assert first.peers()[0].last_handshake is None
    assert pair.ping(0, B6)
    assert pair.ping(0, B4)
    assert pair.ping(1, A6)
    assert pair.ping(1, A4)
    for device, side in ((first, 1), (second, 0)):
        (state,) = device.peers()
        assert state.public_key == pair.peer(side).node_public
        assert state.endpoint == pair.peer(side).endpoint
        assert state.last_handshake is not None
        assert state.last_handshake > 1_600_000_000
        assert min(state.rx_bytes, state.tx_bytes) > 0


def test_applying_the_same_again_changes_nothing(pair: Any) -> None:
    first, _ = pair.up()
    assert pair.ping(0, B6)
    before = first.peers()
    first.apply([pair.peer(1)])
    assert first.peers() == before


def test_routes_are_given_taken_and_go_with_the_device(pair: Any) -> None:
    own = ip_network(f"{B6}/128")
    first, _ = pair.up()
    first.route({own: 1280})
    assert pair.ping(0, B6)
    first.route({})
    assert pair.ping(0, B6)
    first.close()
    with pytest.raises(EnvironmentFault, match="is not up"):
        first.route({own: 1280})
    first = pair.open(0)
    first.route({own: 1280})
    first.apply([pair.peer(1)])
    assert pair.ping(0, B6)


def test_a_roaming_peer_is_followed_and_not_called_back_by_the_same_wish(pair: Any) -> None:
    first, second = pair.up()
    assert pair.ping(0, B4)
    pair.move(1, "192.0.2.77")
    second.refresh()
    assert pair.ping(1, A4)
    assert first.peers()[0].endpoint == ("192.0.2.77", 51821)
    first.apply([pair.peer(1)])
    assert first.peers()[0].endpoint == ("192.0.2.77", 51821)
    assert pair.ping(0, B4)


def test_a_new_endpoint_is_used(pair: Any) -> None:
    first, _ = pair.up()
    assert pair.ping(0, B4)
    handshake = first.peers()[0].last_handshake
    pair.move(1, "192.0.2.77")
    first.apply([pair.peer(1, endpoint=("192.0.2.77", 51821))])
    assert pair.ping(0, B4)
    assert first.peers()[0].endpoint == ("192.0.2.77", 51821)
    assert first.peers()[0].last_handshake == handshake


def test_a_removed_peer_has_no_traffic_until_it_is_added_again(pair: Any) -> None:
    first, second = pair.up()
    assert pair.ping(0, B6)
    first.apply([])
    assert first.peers() == []
    assert not pair.ping(0, B6, 0.15)
    assert not pair.ping(1, A6, 0.15)
    first.apply([pair.peer(1)])
    second.apply([])
    second.apply([pair.peer(0)])
    assert pair.ping(0, B6)


def test_only_allowed_addresses_pass(pair: Any) -> None:
    first, _ = pair.up()
    ipv6 = tuple(network for network in pair.peer(1).allowed_ips if network.version == 6)
    first.apply([pair.peer(1, allowed_ips=ipv6)])
    assert pair.ping(0, B6)
    assert not pair.ping(0, B4, 0.15)
    first.apply([pair.peer(1)])
    assert pair.ping(0, B4)


def test_an_address_moves_from_one_peer_to_another(pair: Any) -> None:
    first, _ = pair.up()
    stranger = replace(pair.peer(1), node_public=bytes([9]) * 32, endpoint=None)
    first.apply([replace(stranger), pair.peer(1, allowed_ips=())])
    assert {state.public_key for state in first.peers()} == {
        stranger.node_public,
        pair.peer(1).node_public,
    }
    assert not pair.ping(0, B6, 0.15)
    first.apply([pair.peer(1), replace(stranger, allowed_ips=())])
    assert pair.ping(0, B6)


def test_a_keepalive_is_sent_until_it_is_taken_away(wired: Any) -> None:
    first, second = wired.open(0), wired.open(1)
    second.apply([wired.peer(0, endpoint=None)])
    first.apply([wired.peer(1, keepalive_s=1)])

    def received() -> int:
        (state,) = second.peers()
        return int(state.rx_bytes) if state.last_handshake is not None else 0

    # It opens the session by itself, and goes on without any traffic.
    for more in range(2):
        before, deadline = received(), time.monotonic() + 10
        while received() == before:
            assert time.monotonic() < deadline, f"{more} came"
            time.sleep(0.05)
    assert second.peers()[0].endpoint == wired.peer(0).endpoint
    first.apply([wired.peer(1)])
    time.sleep(0.2)
    last = received()
    time.sleep(1.4)
    assert received() == last


def test_close_leaves_nothing_and_open_works_again(pair: Any) -> None:
    first, _ = pair.up()
    assert pair.left(0) != []
    first.close()
    assert pair.left(0) == []
    assert first.listen_port == 0
    assert first.failure() == "the device is closed"
    first.close()
    with pytest.raises(EnvironmentFault, match="is not up"):
        first.peers()
    pair.open(0)
    assert first.peers() == []
    first.apply([pair.peer(1)])
    assert pair.ping(0, B6)


def test_any_free_port(pair: Any) -> None:
    assert pair.open(0, listen_port=0).listen_port > 1023


def test_a_port_in_use(pair: Any) -> None:
    with (
        pair.port_taken(0, 51820),
        pytest.raises(EnvironmentFault, match=r"^UDP port 51820 is in use$"),
    ):
        pair.open(0)
    assert pair.left(0) == []
    pair.open(0)


def test_an_interface_of_someone_else_is_not_touched(pair: Any) -> None:
    with pair.name_taken(0), pytest.raises(EnvironmentFault, match="exists already and belongs to"):
        pair.open(0)
    pair.open(0)


def test_a_left_over_of_ours_is_adopted_with_its_peers(pair: Any) -> None:
    first, second = pair.up()
    assert pair.ping(0, B6)
    (before,) = first.peers()
    pair.abandon(0)
    again = pair.devices[0]
    opened = pair.opens(0)
    assert opened.adopted
    assert opened.peers == (pair.peer(1),)
    assert again.listen_port == 51820
    again.apply(opened.peers)
    assert again.peers() == [before]
    assert pair.ping(1, A4)
    assert pair.ping(0, B4)
    again.apply([])
    assert again.peers() == []
    again.close()
    assert pair.left(0) == []
    second.close()


def test_a_left_over_with_another_port_is_made_anew(pair: Any) -> None:
    pair.up()
    pair.abandon(0)
    opened = pair.opens(0, listen_port=51999)
    assert not opened.adopted
    assert pair.devices[0].peers() == []
    pair.devices[0].close()
    assert pair.left(0) == []


def test_the_interface_of_another_node_is_not_taken_over(pair: Any) -> None:
    pair.open(0)
    with pytest.raises(EnvironmentFault, match=r"another|something else"):
        pair.device(0).open(bytes([5]) * 32, 51829, pair_addresses(pair))
    assert pair.devices[0].failure() is None


def test_wrong_arguments(pair: Any) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"private_key": b"short"}, "32 bytes"),
        ({"listen_port": 65536}, "not a UDP port"),
        ({"addresses": ()}, "needs an address"),
        ({"mtu": 1279}, "MTU 1279"),
    ]
    for changes, words in cases:
        with pytest.raises(ValueError, match=words):
            pair.open(0, **changes)
    assert pair.left(0) == []
    pair.open(0)
    with pytest.raises(ValueError, match="open already"):
        pair.open(0)


def test_wrong_peers(pair: Any) -> None:
    device = pair.open(0)
    good = pair.peer(1)
    cases = [
        ([good, good], "given twice"),
        ([pair.peer(0)], "is this node"),
        ([good, replace(good, node_public=bytes(32))], "two peers"),
        ([replace(good, endpoint=("example.org", 1))], "does not appear to be"),
        ([replace(good, endpoint=("fe80::1%eth0", 1))], "no zone"),
        ([replace(good, endpoint=("192.0.2.1", 0))], "not a UDP port"),
        ([replace(good, node_public=b"x")], "32 bytes"),
        ([replace(good, keepalive_s=-1)], "not a keepalive"),
    ]
    for peers, words in cases:
        with pytest.raises(ValueError, match=words):
            device.apply(peers)
        assert device.peers() == []


def pair_addresses(pair: Any) -> list[Any]:
    """Return side 0's addresses as they were given to its device."""
    device = pair.devices[0]
    config = device.config if pair.kind == "fake" else device._config
    return list(config.addresses)
