"""The peer table: members only, endpoints that rotate, and peers that went silent."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from agent.identity.keys import NodeId, NodeKey
from agent.overlay.device import Endpoint, PeerConfig, PeerState
from agent.overlay.endpoints import TRY_INTERVAL_S
from agent.peers import HEARD_LIMIT_S, RATE_WINDOW_S, PeerTable, Wish

A, B = NodeKey(bytes(32)).id, NodeKey(bytes([1]) * 32).id
FIRST, SECOND = ("192.0.2.1", 51820), ("192.0.2.2", 51820)


def everyone(_: NodeId) -> bool:
    return True


def table(*candidates: Endpoint) -> PeerTable:
    result = PeerTable(B)
    result.learn(A, IPv6Address("fd00::1"), IPv4Address("10.77.0.1"), candidates)
    return result


def state(*, handshake: float | None, rx: int, endpoint: Endpoint | None = FIRST) -> PeerState:
    return PeerState(A.wireguard_public, endpoint, handshake, rx, 10)


def test_allowed_ips_are_the_peers_own_two_addresses() -> None:
    (config,) = table(FIRST).configs(everyone, 0.0)
    assert [str(network) for network in config.allowed_ips] == ["fd00::1/128", "10.77.0.1/32"]
    assert config.node_public == A.wireguard_public
    assert config.endpoint == FIRST


def test_only_members_become_peers() -> None:
    peers = table(FIRST)
    assert peers.configs(lambda node: node == B, 0.0) == []
    assert peers.mtus(lambda node: node == B, lambda _: 1440) == []


def test_what_a_path_carries_is_said_of_both_addresses() -> None:
    ((networks, mtu),) = table(FIRST).mtus(everyone, {A: 1420}.__getitem__)
    assert ([str(each) for each in networks], mtu) == (["fd00::1/128", "10.77.0.1/32"], 1420)


def test_endpoints_rotate_until_one_answers_and_then_stay() -> None:
    peers = table(FIRST, SECOND)
    assert peers.configs(everyone, 0.0)[0].endpoint == FIRST
    later = TRY_INTERVAL_S + 1
    assert peers.configs(everyone, later)[0].endpoint == SECOND
    peers.observe([state(handshake=later, rx=100, endpoint=SECOND)], later)
    assert peers.connected(A, later)
    assert peers.configs(everyone, later + TRY_INTERVAL_S + 1)[0].endpoint == SECOND


def test_a_peer_that_falls_silent_is_not_connected_although_its_session_is_young() -> None:
    peers = table(FIRST, SECOND)
    peers.configs(everyone, 0.0)
    peers.observe([state(handshake=1.0, rx=100)], 1.0)
    assert peers.connected(A, 1.0 + HEARD_LIMIT_S - 1)
    peers.observe([state(handshake=1.0, rx=100)], 30.0)
    silent = 2.0 + HEARD_LIMIT_S
    assert not peers.connected(A, silent)
    assert peers.configs(everyone, silent)[0].endpoint == SECOND
    peers.observe([state(handshake=1.0, rx=132)], silent + 10)
    assert peers.connected(A, silent + 10)


def test_news_of_a_peer_replace_its_candidates() -> None:
    peers = table(FIRST)
    peers.configs(everyone, 0.0)
    peers.learn(A, IPv6Address("fd00::1"), IPv4Address("10.77.0.9"), [SECOND])
    (config,) = peers.configs(everyone, 1.0)
    assert config.endpoint == SECOND
    assert str(config.allowed_ips[1]) == "10.77.0.9/32"


def test_the_description_says_what_the_device_shows() -> None:
    peers = table(FIRST)
    assert peers.describe(A, 0.0)["path"] == "none"
    peers.observe([state(handshake=5.0, rx=7, endpoint=("2001:db8::1", 9))], 8.0)
    assert peers.describe(A, 8.0) == {
        "path": "direct",
        "endpoint": "[2001:db8::1]:9",
        "handshake_age_s": 3.0,
        "rx_bytes": 7,
        "tx_bytes": 10,
        "rx_bytes_s": None,
        "tx_bytes_s": None,
    }
    assert peers.describe(B, 8.0)["path"] == "none"
    assert not peers.connected(B, 8.0)
    assert (peers.host(A), peers.host(B)) == ("2001:db8::1", None)


def rates(peers: PeerTable, now: float) -> tuple[float | None, float | None]:
    described = peers.describe(A, now)
    return described["rx_bytes_s"], described["tx_bytes_s"]


def counted(peers: PeerTable, now: float, rx: int, tx: int) -> None:
    peers.observe([PeerState(A.wireguard_public, FIRST, 1.0, rx, tx)], now)


def test_throughput_is_that_of_the_last_seconds() -> None:
    peers = table(FIRST)
    assert rates(peers, 0.0) == (None, None)
    counted(peers, 100.0, 5_000_000, 10)
    assert rates(peers, 100.0) == (None, None), "what came before is nobody's rate"
    for step in range(1, 41):  # 20 s at two looks a second
        counted(peers, 100 + step / 2, 5_000_000 + 500 * step, 10 + 50 * step)
        assert rates(peers, 100 + step / 2) == (1000, 100)
    for step in range(1, 11):
        counted(peers, 120 + step / 2, 5_020_000, 2010)
    assert rates(peers, 125.0) == (0, 0), "it has been silent for the whole window"


def test_throughput_of_a_calm_mesh_that_is_looked_at_each_five_seconds() -> None:
    peers = table(FIRST)
    for look in range(4):
        counted(peers, 100.0 + 5.5 * look, 55 * look, 0)
    assert rates(peers, 118.0) == (10, 0)
    assert rates(peers, 100 + 16.5 + 2 * RATE_WINDOW_S + 1) == (None, None), "nobody looks"


def test_throughput_begins_anew_with_the_counters_and_the_clock() -> None:
    peers = table(FIRST)
    counted(peers, 100.0, 9000, 9000)
    counted(peers, 101.0, 10_000, 9500)
    assert rates(peers, 101.0) == (1000, 500)
    counted(peers, 102.0, 500, 100)  # the device was made anew
    assert rates(peers, 102.0) == (None, None)
    counted(peers, 103.0, 700, 100)
    assert rates(peers, 103.0) == (200, 0)
    counted(peers, 50.0, 800, 100)  # somebody set the clock
    assert rates(peers, 50.0) == (None, None)
    counted(peers, 52.0, 1000, 100)
    assert rates(peers, 52.0) == (100, 0)


def test_the_path_engine_s_endpoint_is_taken_and_set_again_when_it_says_so() -> None:
    peers = table(FIRST)
    (config,) = peers.configs(everyone, 0.0, {A: Wish(SECOND, 3, 1)}.get)
    assert (config.endpoint, config.order, config.session) == (SECOND, 3, 1)


def test_a_member_that_nothing_flows_to_is_no_peer_and_what_is_sent_to_it_no_error() -> None:
    networks = (IPv6Network("fd00::/48"), IPv4Network("10.77.0.0/16"))
    peers = PeerTable(B, networks)
    peers.learn(A, IPv6Address("fd00::1"), IPv4Address("10.77.0.1"), [FIRST])
    (nobody,) = peers.configs(everyone, 0.0, lambda _: None)
    assert nobody.node_public != A.wireguard_public
    assert nobody.allowed_ips == networks
    assert nobody.endpoint is not None
    assert nobody.endpoint[0] == "127.0.0.1", "and leaves this machine never"
    (config,) = peers.configs(everyone, 0.0, lambda _: Wish(FIRST))
    assert config.node_public == A.wireguard_public, "once there is a path, nobody is needed"
    assert peers.at(IPv4Address("10.77.0.1")) == peers.at(IPv6Address("fd00::1")) == A
    assert peers.at(IPv4Address("10.77.0.2")) is None
    assert len(peers.addresses([A, B])) == 2


def test_a_member_that_is_gone_may_call_whichever_end_begins_handshakes() -> None:
    for own, other in ((A, B), (B, A)):
        peers = PeerTable(own)
        peers.learn(other, IPv6Address("fd00::1"), IPv4Address("10.77.0.1"), [FIRST])
        (config,) = peers.configs(everyone, 0.0, lambda _: Wish(passive=True))
        assert config.node_public == other.wireguard_public
        assert (config.endpoint, config.keepalive_s) == (None, 0)


def test_who_was_taken_from_the_device_is_not_connected() -> None:
    peers = table(FIRST)
    peers.observe([state(handshake=1.0, rx=100)], 1.0)
    assert peers.connected(A, 2.0)
    peers.observe([], 2.0)
    assert not peers.connected(A, 2.0)
    peers.observe([state(handshake=None, rx=0)], 3.0)
    assert not peers.connected(A, 3.0), "it was added anew"


def test_one_end_alone_begins_a_session_that_both_get_at_once() -> None:
    low, high = sorted((A, B))
    for own, peer, begins in ((low, high, True), (high, low, False)):
        peers = PeerTable(own)
        peers.learn(peer, IPv6Address("fd00::1"), IPv4Address("10.77.0.1"), [])
        (config,) = peers.configs(everyone, 0.0, lambda _: Wish(FIRST, 1))
        assert bool(config.keepalive_s) is begins
        waiting = peers.configs(everyone, 0.0, lambda _: Wish())
        assert bool(waiting) is not begins, "who begins does so when there is somewhere to go"
        peers.observe([PeerState(peer.wireguard_public, FIRST, 1.0, 100, 10)], 1.0)
        (config,) = peers.configs(everyone, 1.0, lambda _: Wish(FIRST, 1))
        assert config.keepalive_s, "both keep it up once it is there"


def held_table() -> PeerTable:
    peers = table(FIRST)
    held = PeerConfig(A.wireguard_public, SECOND, keepalive_s=15)
    peers.hold([held, PeerConfig(bytes(32), FIRST)], until=30.0)
    return peers


def test_what_was_adopted_stays_as_it_is_until_a_path_is_found() -> None:
    peers = held_table()
    wishes: dict[NodeId, Wish | None] = {A: None}
    for wish in (None, Wish(passive=True), Wish()):
        wishes[A] = wish
        (config,) = peers.configs(everyone, 1.0, wishes.get)
        assert (config.endpoint, config.keepalive_s, config.order) == (SECOND, 15, 0)
        assert len(config.allowed_ips) == 2, "its addresses are what its certificate says"
    wishes[A] = Wish(FIRST, order=1)
    assert peers.configs(everyone, 2.0, wishes.get)[0].endpoint == FIRST
    wishes[A] = None
    (nobody,) = peers.configs(everyone, 3.0, wishes.get)
    assert nobody.node_public != A.wireguard_public, "it was held only until then"


def test_what_was_adopted_is_not_held_for_ever_nor_for_who_is_no_member() -> None:
    peers = held_table()
    assert peers.configs(lambda node: False, 1.0, lambda _: None) == []
    assert peers.configs(everyone, 1.0)[0].endpoint == SECOND, "also without a path engine"
    assert peers.configs(everyone, 30.0)[0].endpoint == FIRST
    assert peers.configs(everyone, 1.0)[0].endpoint == FIRST
