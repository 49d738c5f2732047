"""The table in the docstring of agent/lan/peers.py, row by row, and its bounds."""

import dataclasses
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.identity.keys import NodeKey
from agent.lan import peers
from agent.lan.announcement import VERSION, Announcement, AnnouncementSeal, Ports
from agent.lan.peers import (
    CLOCK_SKEW_S,
    EXPIRES_S,
    LINKS_PER_NODE_MAX,
    PROOFS_BURST,
    Allowance,
    LanPeer,
    PeerBook,
    Refusal,
)
from agent.membership.networkkeys import NetworkKeys

NOW = 1_800_000_000.0
MESH, NETWORK = b"m" * 32, b"n" * 32
OWN, A, B = (NodeKey(bytes([n]) * 32) for n in (1, 2, 3))
RNG = random.Random(1)
SEAL = AnnouncementSeal(MESH, NetworkKeys.single(NETWORK))
HOME, WIFI = bytes([192, 168, 1, 5]), bytes([192, 168, 2, 5])


@pytest.fixture
def book() -> PeerBook:
    return PeerBook(SEAL, OWN.id, loopback=False)


def said(
    key: NodeKey = A, at: float = NOW, *, by: NodeKey | None = None, seal: Any = SEAL, **over: Any
) -> bytes:
    fields = {"link": 2, "ports": Ports(4001, 4002, 51820), "leaving": False, "packed": (HOME,)}
    announcement = Announcement(
        version=VERSION, node=key.id.ed25519, sent_us=int(at * 1e6), **(fields | over)
    )
    return seal.seal(announcement, by or key, RNG.randbytes(24))


def test_a_node_is_news_once(book: PeerBook) -> None:
    news = book.take(said(), NOW + 1)
    assert news == LanPeer(A.id, ("192.168.1.5",), 4001, 4002, 51820, NOW + 1)
    assert book.take(said(at=NOW + 60), NOW + 60) is None
    assert [peer.seen_at for peer in book.peers()] == [NOW + 60]


def test_foreign_bytes_and_other_meshes(book: PeerBook) -> None:
    other = AnnouncementSeal(b"x" * 32, NetworkKeys.single(NETWORK))
    assert book.take(b"junk", NOW) is Refusal.FOREIGN
    assert book.take(said(seal=other), NOW) is Refusal.FOREIGN
    assert book.refusals[Refusal.FOREIGN] == 2


def test_what_no_one_could_reach_is_malformed(book: PeerBook) -> None:
    for packed in ((), (bytes(4),), (HOME, bytes([127, 0, 0, 1])), (b"\xfe\x80" + bytes(14),)):
        assert book.take(said(packed=packed), NOW) is Refusal.MALFORMED


def test_sealed_nonsense_is_malformed(book: PeerBook) -> None:
    assert book.take(SEAL._seal.seal(bytes(256), b"n" * 24), NOW) is Refusal.MALFORMED


def test_our_own_announcement_is_not_a_peer(book: PeerBook) -> None:
    assert book.take(said(OWN), NOW) is Refusal.OWN
    assert PeerBook(SEAL, None, loopback=False).take(said(OWN), NOW) is not Refusal.OWN


def test_old_and_future_ones_are_refused(book: PeerBook) -> None:
    for at in (NOW - CLOCK_SKEW_S - 1, NOW + CLOCK_SKEW_S + 1):
        assert book.take(said(at=at), NOW) is Refusal.CLOCK
    assert book.peers() == []


def test_a_repeated_and_an_overtaken_one_are_old(book: PeerBook) -> None:
    first, second = said(), said(at=NOW + 1)
    assert isinstance(book.take(second, NOW), LanPeer)
    assert book.take(second, NOW + 5) is Refusal.OLD
    assert book.take(first, NOW + 5) is Refusal.OLD
    assert book.peers()[0].seen_at == NOW


def test_links_are_told_apart_so_none_makes_the_other_old(book: PeerBook) -> None:
    first, second = said(link=2), said(at=NOW + 1, link=3, packed=(WIFI,))
    book.take(second, NOW)
    news = book.take(first, NOW)
    assert isinstance(news, LanPeer)
    assert news.addresses == ("192.168.1.5", "192.168.2.5")


def test_nobody_speaks_for_another_node(book: PeerBook) -> None:
    assert book.take(said(A, by=B), NOW) is Refusal.UNPROVEN
    assert isinstance(book.take(said(A), NOW), LanPeer)


def test_an_unproven_one_does_not_make_the_true_one_old(book: PeerBook) -> None:
    book.take(said(A), NOW)
    assert book.take(said(A, NOW + 100, by=B), NOW) is Refusal.UNPROVEN
    assert book.take(said(A, NOW + 1), NOW) is None


def test_who_leaves_is_gone_and_nothing_older_brings_it_back(book: PeerBook) -> None:
    book.take(said(), NOW)
    assert book.take(said(at=NOW + 2, leaving=True, packed=()), NOW + 2) is None
    assert book.peers() == []
    for link in (2, 7):
        assert book.take(said(at=NOW + 1, link=link), NOW + 2) is Refusal.OLD
    assert isinstance(book.take(said(at=NOW + 3), NOW + 3), LanPeer)


@pytest.mark.parametrize(
    "over", [{"packed": (WIFI,)}, {"packed": (HOME, WIFI)}, {"ports": Ports(1, 4002, 51820)},
             {"ports": Ports(4001, 1, 51820)}, {"ports": Ports(4001, 4002, 1)}],
)  # fmt: skip
def test_another_address_or_port_is_news(book: PeerBook, over: dict[str, Any]) -> None:
    book.take(said(), NOW)
    assert isinstance(book.take(said(at=NOW + 1, **over), NOW + 1), LanPeer)


def test_another_order_is_no_news(book: PeerBook) -> None:
    book.take(said(packed=(HOME, WIFI)), NOW)
    assert book.take(said(at=NOW + 1, packed=(WIFI, HOME)), NOW + 1) is None
    assert book.peers()[0].addresses == ("192.168.2.5", "192.168.1.5")


def test_the_silent_are_gone_and_news_when_they_are_back(book: PeerBook) -> None:
    book.take(said(), NOW)
    assert book.expire(NOW + EXPIRES_S) == []
    assert [peer.node for peer in book.expire(NOW + EXPIRES_S + 1)] == [A.id]
    assert book.peers() == book.expire(NOW + EXPIRES_S + 2) == []
    later = NOW + EXPIRES_S + 3
    assert isinstance(book.take(said(at=later), later), LanPeer)


def test_a_silent_link_goes_by_itself(book: PeerBook) -> None:
    book.take(said(link=2), NOW)
    book.take(said(at=NOW + 150, link=3, packed=(WIFI,)), NOW + 150)
    assert book.expire(NOW + EXPIRES_S + 1) == []
    assert book.peers()[0].addresses == ("192.168.2.5",)


def test_a_node_whose_clock_is_ahead_is_not_brought_back_by_a_replay(book: PeerBook) -> None:
    ahead = said(at=NOW + CLOCK_SKEW_S)
    book.take(ahead, NOW)
    for after in range(0, int(3 * CLOCK_SKEW_S), 10):
        book.expire(NOW + after)
        assert book.take(ahead, NOW + after) in (Refusal.OLD, Refusal.CLOCK)


def test_a_clock_that_is_set_back_keeps_nobody_for_ever(book: PeerBook) -> None:
    book.take(said(), NOW)
    back = NOW - 86400.0
    assert book.expire(back) == []
    assert [peer.node for peer in book.expire(back + EXPIRES_S + 1)] == [A.id]


def test_other_network_keys_count_at_once(book: PeerBook) -> None:
    new = b"k" * 32
    sealed = said(seal=AnnouncementSeal(MESH, NetworkKeys.single(new)))
    assert book.take(sealed, NOW) is Refusal.FOREIGN
    book.seal = AnnouncementSeal(MESH, NetworkKeys(NETWORK, (new, NETWORK)))
    assert isinstance(book.take(sealed, NOW), LanPeer)


def test_links_of_one_node_are_bounded(book: PeerBook) -> None:
    for link in range(30):
        book.take(said(at=NOW + link, link=link, packed=(bytes([10, 0, 0, link + 1]),)), NOW)
    (peer,) = book.peers()
    assert peer.addresses == tuple(f"10.0.0.{n}" for n in range(30, 30 - LINKS_PER_NODE_MAX, -1))
    assert book.take(said(at=NOW + 3, link=3), NOW) is Refusal.OLD


def test_nodes_are_bounded_and_the_longest_silent_goes_first(
    book: PeerBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "NODES_MAX", 8)
    keys = [NodeKey(bytes([9, n]) * 16) for n in range(20)]
    for number, key in enumerate(keys):
        assert isinstance(book.take(said(key, NOW + number), NOW + number), LanPeer)
    assert [peer.node for peer in book.peers()] == [key.id for key in reversed(keys[-8:])]


def test_signature_checks_are_bounded_and_replays_cost_none(book: PeerBook) -> None:
    forged = said(A, by=B)
    results = [book.take(forged, NOW) for _ in range(int(PROOFS_BURST) + 10)]
    assert results.count(Refusal.UNPROVEN) == PROOFS_BURST
    assert results.count(Refusal.CROWDED) == 10
    assert isinstance(book.take(said(), NOW + 1), LanPeer)
    before = book._proofs._left
    for _ in range(1000):
        assert book.take(said(at=NOW - 1), NOW + 1) is Refusal.OLD
    assert book._proofs._left == before


def test_an_allowance_fills_up_again_and_no_clock_cheats_it() -> None:
    allowance = Allowance(per_s=2.0, burst=3.0)
    assert [allowance.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert [allowance.take(10.5) for _ in range(2)] == [True, False]
    assert allowance.take(0.0) is False
    assert [allowance.take(1e9) for _ in range(4)] == [True, True, True, False]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([A, B]), st.integers(0, 400), st.integers(0, 6), st.booleans(),
            st.integers(0, 400),
        ),
        max_size=25,
    )
)  # fmt: skip
def test_whatever_is_true_and_comes_in_any_order_the_book_stays_sound(
    events: list[tuple[NodeKey, int, int, bool, int]],
) -> None:
    book, newest = PeerBook(SEAL, OWN.id, loopback=False), {A.id: -1, B.id: -1}
    for key, sent, link, leaving, now in events:
        result = book.take(said(key, NOW + sent, link=link, leaving=leaving), NOW + now)
        if not isinstance(result, Refusal):
            assert abs(sent - now) <= CLOCK_SKEW_S
            newest[key.id] = max(newest[key.id], sent)
        book.expire(NOW + now)
        nodes = [peer.node for peer in book.peers()]
        assert len(nodes) == len(set(nodes))
        assert all(newest[node] >= 0 for node in nodes)


def test_a_peer_is_a_value() -> None:
    peer = LanPeer(A.id, ("10.0.0.1",), 1, 2, 3, NOW)
    assert dataclasses.replace(peer) == peer
    with pytest.raises(dataclasses.FrozenInstanceError):
        peer.seen_at = 0.0  # type: ignore[misc]  # that is the point
    assert msgspec.json.encode(peer.addresses) == b'["10.0.0.1"]'
