"""The kind of NAT, from honest rendezvous, few of them, lying ones, and none that answers."""

from ipaddress import ip_interface

import pytest

from agent.identity.keys import NodeId
from agent.paths.candidates import Surroundings
from agent.paths.messages import NatKind, Place
from agent.paths.natkind import ASKS_MIN, BLOCKED_S, OBSERVED_S, PLACES_MAX, NatTable

A, B, C, D = (NodeId(bytes([n]) * 32) for n in range(1, 5))
INSIDE = Surroundings(interfaces=(ip_interface("192.168.1.10/24"),))
OUTSIDE = Surroundings(interfaces=(ip_interface("203.0.113.5/24"),))
P, Q, R, S = (("198.51.100.1", port) for port in (4000, 4001, 4002, 4003))
LIE = ("192.0.2.66", 666)
OWN = ("203.0.113.5", 51820)


def table(seen: dict[NodeId, tuple[Place, ...]], at: float = 0.0) -> NatTable:
    made = NatTable()
    for node, places in seen.items():
        made.asked(node, at)
        for port, place in enumerate(places, start=51820):
            made.answered(node, port, place, at)
    return made


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        ({}, NatKind.UNKNOWN),
        ({A: (P,)}, NatKind.UNKNOWN),
        ({A: (P, P)}, NatKind.EASY),
        ({A: (P, Q)}, NatKind.HARD),
        ({A: (P, P), B: (P, P)}, NatKind.EASY),
        ({A: (P,), B: (P,)}, NatKind.EASY),
        ({A: (P, P), B: (Q, Q)}, NatKind.HARD),
        ({A: (P, Q), B: (R, S)}, NatKind.HARD),
        # One lies among three: the others agree.
        ({A: (P, P), B: (P, P), C: (LIE, LIE)}, NatKind.EASY),
        ({A: (P, P), B: (P, P), C: (LIE, P)}, NatKind.EASY),
        # It cannot make a hard NAT look easy either, not even by naming what another saw.
        ({A: (P, Q), B: (P, P)}, NatKind.HARD),
        ({A: (P, Q), B: (R, S), C: (P, P)}, NatKind.HARD),
        ({A: (P, P), B: (P, P), C: (("2001:db8::1", 51820),)}, NatKind.EASY),
        # One on our LAN knows nothing of the router.
        ({A: (("192.168.1.10", 51820),) * 2}, NatKind.UNKNOWN),
        ({A: (("192.168.1.10", 51820),) * 2, B: (P, Q)}, NatKind.HARD),
    ],
)
def test_the_kind_behind_a_router(seen: dict[NodeId, tuple[Place, ...]], kind: NatKind) -> None:
    assert table(seen).kind(INSIDE, 1.0) is kind


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        ({A: (OWN,)}, NatKind.NONE),
        ({A: (OWN, OWN), B: (OWN,), C: (LIE, LIE)}, NatKind.NONE),
        ({A: (OWN, OWN), B: (LIE, LIE)}, NatKind.HARD),
        ({A: (("203.0.113.5", 1), ("203.0.113.5", 1))}, NatKind.EASY),
    ],
)
def test_the_kind_of_a_machine_with_a_public_address(
    seen: dict[NodeId, tuple[Place, ...]], kind: NatKind
) -> None:
    assert table(seen).kind(OUTSIDE, 1.0) is kind


def test_observations_expire() -> None:
    made = table({A: (P, P)})
    assert made.kind(INSIDE, OBSERVED_S) is NatKind.EASY
    assert made.kind(INSIDE, OBSERVED_S + 1) is NatKind.UNKNOWN
    assert made.places(OBSERVED_S + 1) == []


def test_no_answer_to_several_questions_is_blocked() -> None:
    made = NatTable()
    assert made.kind(INSIDE, 100.0) is NatKind.UNKNOWN
    for n in range(ASKS_MIN):
        made.asked(A, n / 10)
    assert made.kind(INSIDE, BLOCKED_S - 0.01) is NatKind.UNKNOWN
    assert made.kind(INSIDE, BLOCKED_S) is NatKind.BLOCKED
    made.answered(A, 51820, P, 1.0)
    made.answered(A, 51821, P, 1.0)
    assert made.kind(INSIDE, 1.0) is NatKind.EASY


def test_an_answer_by_one_who_was_not_asked_counts_for_nothing() -> None:
    made = table({A: (P, P)})
    made.answered(D, 51820, LIE, 1.0)
    assert made.places(1.0) == [P]


def test_places_are_bounded_and_the_commonest_comes_first() -> None:
    made = table({A: (P, R), B: (P, S), C: (Q, LIE)})
    found = made.places(1.0)
    assert found[0] == P
    assert len(found) == PLACES_MAX


def test_a_rendezvous_that_is_none_any_more_is_forgotten() -> None:
    made = table({A: (P, P), B: (Q, Q)})
    made.keep([A])
    assert made.kind(INSIDE, 1.0) is NatKind.EASY
    made.clear()
    assert made.kind(INSIDE, 1.0) is NatKind.UNKNOWN
