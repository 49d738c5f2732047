"""The small parts of traversal: who helps, what a ticket holds, what netcheck concludes."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import PeerError
from agent.identity.keys import NodeId
from agent.paths.messages import NatKind
from agent.traversal import helpers, verdict
from agent.traversal.helpers import Outside, Reachable
from agent.traversal.relayticket import RelayTicket

A, B, C, D = (NodeId(bytes([n]) * 32) for n in range(1, 5))
WG = 51820


def member(node: NodeId, host: str, rtt_s: float | None = 0.01, *roles: str) -> Reachable:
    return Reachable(node, host, ((host, WG),), roles or ("worker",), rtt_s)


def test_the_nearest_public_members_help_first_and_relays_by_role_before_them() -> None:
    far, near = member(A, "192.88.99.1", 0.2), member(B, "192.88.99.2", 0.01)
    relay = member(C, "192.88.99.3", 0.3, "relay")
    lan = member(D, "192.168.1.9", 0.001)
    found = helpers.choose([lan, far, relay, near])
    assert [node for node, _ in found.rendezvous] == [B, A, C, D]
    assert [node for node, _ in found.relays] == [C, B, A], "a LAN's relay is of no use elsewhere"
    assert found.rendezvous[0] == (B, ("192.88.99.2", WG))


def test_the_order_does_not_change_with_every_millisecond() -> None:
    once = helpers.choose([member(A, "192.88.99.1", 0.011), member(B, "192.88.99.2", 0.012)])
    again = helpers.choose([member(A, "192.88.99.1", 0.013), member(B, "192.88.99.2", 0.012)])
    assert once == again


def test_behind_a_forwarded_port_the_address_that_answered_counts() -> None:
    behind = Reachable(A, "192.88.99.7", (("192.168.1.2", 51999),), ("worker",), None)
    assert helpers.choose([behind]).rendezvous == ((A, ("192.88.99.7", 51999)),)


def test_over_the_overlay_everyone_answers_which_says_nothing() -> None:
    outside = Outside([ip_network("fd00:1::/48"), ip_network("10.77.0.0/16")])
    outside.answered(A, "fd00:1::5")
    outside.answered(B, "192.88.99.2")
    outside.answered(B, "10.77.0.9")
    outside.answered(C, "192.88.99.3")
    assert outside.hosts([A, B]) == {B: "192.88.99.2"}
    assert outside.hosts([A, B, C]) == {B: "192.88.99.2"}, "who was gone has to answer anew"


def test_where_nobody_answers_a_member_with_the_role_relay_is_taken_at_its_word() -> None:
    places = [("192.168.1.2", WG), ("192.88.99.3", WG)]
    assert helpers.reachable(A, None, places, ("worker",), None) is None
    found = helpers.reachable(A, None, places, ("worker", "relay"), None)
    assert found is not None
    assert found.host == "192.88.99.3"
    assert helpers.reachable(A, None, places[:1], ("relay",), None) is None


@given(st.binary(min_size=8, max_size=8), st.integers(1, 65535), st.integers(1, 65535) | st.none())
def test_a_ticket_is_read_as_it_was_written(allocation: bytes, port: int, tunnel: int) -> None:
    ticket = RelayTicket(allocation, port, tunnel)
    assert RelayTicket.decode(ticket.encode()) == ticket


@given(st.binary(max_size=20))
def test_what_is_no_ticket_is_refused_with_one_error(raw: bytes) -> None:
    try:
        ticket = RelayTicket.decode(raw)
    except PeerError:
        return
    assert ticket.encode() == raw


@pytest.mark.parametrize("nat", list(NatKind))
def test_there_is_a_sentence_for_every_kind_of_nat(nat: NatKind) -> None:
    found = verdict.sentence(nat, port=WG, mapped=False, helpers=1, relays=1)
    assert found.endswith(".")
    assert "{" not in found


def test_where_tcp_fails_too_nobody_is_told_of_relays_by_websocket() -> None:
    shut = verdict.sentence(
        NatKind.BLOCKED, port=WG, mapped=False, helpers=1, relays=1, linked=False
    )
    assert "Nothing gets out" in shut
    assert "WebSocket" not in shut
    assert str(WG) in shut


def test_without_the_engine_the_reason_is_the_verdict() -> None:
    assert "needs CAP_NET_RAW" in verdict.without_engine("this needs CAP_NET_RAW")


def test_the_sentence_says_what_is_missing() -> None:
    alone = verdict.sentence(NatKind.UNKNOWN, port=WG, mapped=False, helpers=0, relays=0)
    assert "one machine with a public address" in alone
    hard = verdict.sentence(NatKind.HARD, port=WG, mapped=False, helpers=1, relays=0)
    assert "role relay" in hard
    assert "forwards a port" in verdict.sentence(
        NatKind.HARD, port=WG, mapped=True, helpers=1, relays=0
    )


def test_who_helps_stays_through_a_busy_moment_and_gives_way_to_who_is_much_nearer() -> None:
    many = [NodeId(bytes([n]) * 32) for n in range(10, 16)]
    calm = [member(node, f"192.88.99.{n}", 0.005) for n, node in enumerate(many, 1)]
    chosen = helpers.choose(calm[:4])
    asked = chosen.rendezvous
    assert helpers.choose(calm, chosen).rendezvous == asked, "newcomers are as near"
    busy = [member(m.node, m.host, 0.085 if m in calm[:4] else 0.005) for m in calm]
    assert helpers.choose(busy, chosen).rendezvous == asked
    assert helpers.choose(busy).rendezvous != asked
    slow = [member(m.node, m.host, 0.3 if m in calm[:1] else 0.005) for m in calm]
    moved = helpers.choose(slow, chosen)
    assert many[0] not in {node for node, _ in moved.rendezvous}
    assert {node for node, _ in helpers.choose(calm[1:], chosen).rendezvous} == set(many[1:5])
