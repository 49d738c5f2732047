"""The relays of a pair: who asks when, what an offer may say, what dies and is replaced."""

import random

from agent.identity.keys import NodeId
from agent.paths import outputs as out
from agent.paths.legs import (
    ALONE_S,
    ASK_ANEW_S,
    ASK_TIMEOUT_S,
    OFFER_WAIT_S,
    OWN_MAX,
    RETRY_S,
    WARM_AFTER_S,
    Legs,
)
from agent.paths.messages import NatKind, RelayOffer, pack
from agent.paths.own import Own, RelayNode

LOW, ME, HIGH = (NodeId(bytes([n]) * 32) for n in (1, 5, 9))
RELAYS = [NodeId(bytes([n]) * 32) for n in (11, 12, 13)]
HOSTS = [f"198.51.100.{n}" for n in (11, 12, 13)]


def legs(peer: NodeId = HIGH, nat: NatKind = NatKind.HARD) -> tuple[Legs, list[out.Output], Own]:
    done: list[out.Output] = []
    own = Own(ME, 1, random.Random(1), done.append, lambda now: None)
    own.relays = tuple(RelayNode(n, frozenset({h})) for n, h in zip(RELAYS, HOSTS, strict=True))
    own.nat = nat
    return Legs(peer, own), done, own


def tick(
    made: Legs, now: float, *, called: bool = True, proved: tuple[NodeId, ...] = (),
    dead: dict[NodeId, float] | None = None,
) -> None:  # fmt: skip
    made.tick(now, 0.0, called=called, proved=frozenset(proved), dead=dead or {})


def offer(index: int, port: int = 7001, ticket: bytes = b"t") -> RelayOffer:
    return RelayOffer(RELAYS[index].ed25519, pack((HOSTS[index], port)), ticket)


def test_who_calls_asks_at_once_and_who_is_called_waits_for_an_offer() -> None:
    made, done, _ = legs()
    tick(made, 0.0)
    assert done == [out.OpenRelay(HIGH, RELAYS[0])]
    made, done, _ = legs()
    tick(made, 0.0, called=False)
    assert done == []
    assert made.wake_at == OFFER_WAIT_S
    tick(made, OFFER_WAIT_S, called=False)
    assert done == [out.OpenRelay(HIGH, RELAYS[0])]


def test_the_lower_id_asks_for_a_second_and_no_third() -> None:
    for peer, second in ((HIGH, True), (LOW, False)):
        made, done, _ = legs(peer)
        tick(made, 0.0)
        made.opened(RELAYS[0], (HOSTS[0], 7000), offer(0), 0.1)
        tick(made, 0.2, proved=(RELAYS[0],))
        assert (out.OpenRelay(peer, RELAYS[1]) in done) is second
        if not second:
            tick(made, 6.0)  # the other one has not, so we do
        made.opened(RELAYS[1], (HOSTS[1], 7000), offer(1), 6.1)
        tick(made, 100.0)
        assert sum(isinstance(o, out.OpenRelay) for o in done) == OWN_MAX
        assert [o.node for o in made.offers()] == RELAYS[:2]


def test_a_relay_that_says_nothing_makes_way_for_the_next() -> None:
    made, done, _ = legs()
    tick(made, 0.0)
    tick(made, ASK_TIMEOUT_S)
    assert done[-1] == out.OpenRelay(HIGH, RELAYS[1])
    made.failed(RELAYS[1], 4.0)
    tick(made, 4.0)
    made.failed(RELAYS[2], 5.0)
    tick(made, 5.0)
    assert [o.relay for o in done if isinstance(o, out.OpenRelay)] == RELAYS
    assert [o.relay for o in done if isinstance(o, out.CloseRelay)] == RELAYS
    assert made.wake_at == ASK_TIMEOUT_S + RETRY_S
    tick(made, made.wake_at)
    assert done[-1] == out.OpenRelay(HIGH, RELAYS[0])


def test_one_that_was_let_go_is_asked_soon_when_no_other_works() -> None:
    made, done, own = legs()
    own.relays = own.relays[:2]
    tick(made, 0.0)
    made.opened(RELAYS[0], (HOSTS[0], 7000), offer(0), 0.1)
    tick(made, 0.2, proved=(RELAYS[0],))
    made.opened(RELAYS[1], (HOSTS[1], 7000), offer(1), 0.3)
    tick(made, 5.0, proved=(RELAYS[1],), dead={RELAYS[0]: 4.0})  # let go
    done.clear()
    tick(made, 6.0, dead={RELAYS[1]: 6.0})  # the other dies a second later
    assert done == [], "it was let go just now"
    tick(made, made.wake_at, dead={RELAYS[1]: 6.0})
    assert done == [out.OpenRelay(HIGH, RELAYS[0])]
    assert made.wake_at < 5.0 + RETRY_S
    done.clear()
    tick(made, 8.0 + ASK_TIMEOUT_S, dead={RELAYS[1]: 6.0})
    assert done == [out.CloseRelay(HIGH, RELAYS[0])], "it does not answer either"
    tick(made, made.wake_at, dead={RELAYS[1]: 6.0})
    assert done[1:] == [out.OpenRelay(HIGH, RELAYS[0])]
    assert made.wake_at <= 8.0 + 2 * ASK_TIMEOUT_S + 2 * ALONE_S


def test_a_silent_relay_is_kept_until_another_works() -> None:
    made, done, _ = legs()
    tick(made, 0.0)
    made.opened(RELAYS[0], (HOSTS[0], 7000), offer(0), 0.1)
    tick(made, 10.0, dead={RELAYS[0]: 10.0})
    assert done[-1] == out.OpenRelay(HIGH, RELAYS[1])
    made.opened(RELAYS[1], (HOSTS[1], 7000), offer(1), 10.1)
    assert out.CloseRelay(HIGH, RELAYS[0]) not in done
    tick(made, 10.5, dead={RELAYS[0]: 10.0}, proved=(RELAYS[1],))
    assert out.CloseRelay(HIGH, RELAYS[0]) in done


def test_a_silent_relay_that_is_the_only_one_is_asked_anew() -> None:
    made, done, own = legs()
    own.relays = own.relays[:1]
    tick(made, 0.0)
    made.opened(RELAYS[0], (HOSTS[0], 7000), offer(0), 0.1)
    tick(made, 10.0, dead={RELAYS[0]: 10.0})
    assert len(done) == 1
    tick(made, 10.0 + ASK_ANEW_S - 0.1, dead={RELAYS[0]: 10.0})
    assert len(done) == 1
    tick(made, 10.0 + ASK_ANEW_S, dead={RELAYS[0]: 10.0})
    assert done == [out.OpenRelay(HIGH, RELAYS[0])] * 2


def test_an_offer_is_trusted_at_a_known_relay_s_address_alone() -> None:
    made, done, _ = legs()
    elsewhere = RelayOffer(RELAYS[1].ed25519, pack(("203.0.113.5", 53)))
    stranger = RelayOffer(bytes([77]) * 32, pack(("203.0.113.6", 53)))
    private = RelayOffer(RELAYS[2].ed25519, pack(("192.168.7.1", 53)))
    made.set_offers((offer(0), elsewhere, stranger, private), 0.0)
    joined = [RELAYS[0], RELAYS[1], stranger.node]
    assert [o.relay for o in done if isinstance(o, out.OpenRelay)] == joined
    for relay in joined:
        made.opened(relay, ("198.51.100.99", 7001), None, 0.1)
    trusted = {leg.relay: leg.trusted for leg in made.open_legs()}
    assert trusted == {RELAYS[0]: True, RELAYS[1]: False, stranger.node: False}
    made.set_offers((), 1.0)
    assert made.open_legs() == []
    assert [o.relay for o in done if isinstance(o, out.CloseRelay)] == joined


def test_an_offer_that_failed_is_not_joined_again_at_once() -> None:
    made, done, _ = legs()
    made.set_offers((offer(0),), 0.0)
    made.failed(RELAYS[0], 1.0)
    done.clear()
    made.set_offers((offer(0),), 2.0)
    assert done == []
    made.set_offers((offer(0, 7003, b"new"),), 2.0)
    assert done == [out.OpenRelay(HIGH, RELAYS[0], False, b"new")]


def test_an_offer_that_failed_is_joined_again_though_the_peer_says_no_more() -> None:
    made, done, _ = legs()
    made.set_offers((offer(0), offer(1)), 0.0)
    made.opened(RELAYS[1], (HOSTS[1], 7001), None, 0.1)
    made.failed(RELAYS[0], 1.0)
    done.clear()
    tick(made, 1.0 + RETRY_S - 0.1, called=False, proved=(RELAYS[1],))
    assert made.wake_at <= 1.0 + RETRY_S
    joined = out.OpenRelay(HIGH, RELAYS[0], False, b"t")
    assert joined not in done
    tick(made, 1.0 + RETRY_S, called=False, proved=(RELAYS[1],))
    assert done.count(joined) == 1
    tick(made, 1.1 + RETRY_S, called=False, proved=(RELAYS[1],))
    assert done.count(joined) == 1, "it is being joined"


def test_an_offer_of_a_relay_that_was_not_known_is_joined_once_it_is() -> None:
    """An agent that has just started hears an offer before it knows who relays."""
    made, done, own = legs(HIGH)
    relays, own.relays = own.relays, ()
    made.set_offers((offer(0),), 1.0)
    made.failed(RELAYS[0], 1.0)
    done.clear()
    tick(made, 2.0)
    assert done == []
    own.relays = relays
    made.found(2.5)
    assert done == [out.OpenRelay(HIGH, RELAYS[0], False, b"t")]


def test_both_ask_the_same_relay_and_each_keeps_its_side_of_the_one_allocation() -> None:
    for peer in (HIGH, LOW):
        made, done, _ = legs(peer)
        tick(made, 0.0)
        made.opened(RELAYS[0], (HOSTS[0], 7000), offer(0), 0.1)
        made.set_offers((offer(0, 9001, b"theirs"),), 0.2)
        assert [leg.place for leg in made.open_legs()] == [(HOSTS[0], 7000)]
        assert out.CloseRelay(peer, RELAYS[0]) not in done


def test_where_no_udp_gets_through_relays_are_reached_by_websocket() -> None:
    made, done, own = legs(nat=NatKind.BLOCKED)
    tick(made, 0.0)
    made.set_offers((offer(1),), 0.1)
    assert done == [
        out.OpenRelay(HIGH, RELAYS[0], True),
        out.OpenRelay(HIGH, RELAYS[1], True, b"t"),
    ]
    made.opened(RELAYS[0], ("127.0.0.1", 1), offer(0), 0.2)
    made.opened(RELAYS[1], ("127.0.0.1", 2), None, 0.2)
    assert len(made.open_legs()) == 2
    own.nat = NatKind.HARD
    made.unblocked(1.0)
    assert done[2:] == [
        out.OpenRelay(HIGH, RELAYS[0]),
        out.OpenRelay(HIGH, RELAYS[1], False, b"t"),
    ]
    made.opened(RELAYS[1], (HOSTS[1], 7001), None, 1.1)
    assert [leg.place for leg in made.open_legs()] == [(HOSTS[1], 7001)]


def test_no_relay_is_kept_for_a_peer_that_is_reached_without_a_nat() -> None:
    made, done, _ = legs()
    tick(made, 0.0)
    made.opened(RELAYS[0], (HOSTS[0], 7000), offer(0), 0.1)
    made.rest(20.0, rested=False)
    assert made.wake_at == 20.0
    assert len(made.open_legs()) == 1
    made.rest(20.0, rested=True)
    assert made.open_legs() == []
    assert done[-1] == out.CloseRelay(HIGH, RELAYS[0])


def test_what_was_opened_is_closed() -> None:
    made, done, _ = legs()
    tick(made, 0.0)
    made.set_offers((offer(1),), 0.1)
    made.close()
    assert [o.relay for o in done if isinstance(o, out.CloseRelay)] == RELAYS[:2]
    assert not made.opened(RELAYS[0], (HOSTS[0], 7000), offer(0), 0.5), "it came too late"
    assert done[-1] == out.CloseRelay(HIGH, RELAYS[0])


def test_warm_after() -> None:
    made, done, _ = legs()
    tick(made, 0.0)
    made.opened(RELAYS[0], (HOSTS[0], 7000), offer(0), 0.1)
    tick(made, 0.2)
    assert made.wake_at == WARM_AFTER_S
    tick(made, WARM_AFTER_S)
    assert done[-1] == out.OpenRelay(HIGH, RELAYS[1])
