"""Which places of a peer are probed, and how good the paths to them are."""

from ipaddress import ip_interface, ip_network

import pytest

from agent.paths.candidates import (
    NEW_PER_MINUTE,
    SHARED_MAX,
    Intake,
    PathClass,
    Surroundings,
    own_candidates,
    path_class,
    permitted,
    probeable,
)
from agent.paths.messages import CANDIDATES_MAX, Candidate, Kind, NatKind

AROUND = Surroundings(
    interfaces=(ip_interface("192.168.1.10/24"), ip_interface("2001:db8:1::10/64")),
    overlay=(ip_network("10.77.0.0/16"), ip_network("fd11:2233:4455::/48")),
    mapped=(("198.51.100.1", 4000),),
)
OWN_PUBLIC = frozenset({"198.51.100.1"})


@pytest.mark.parametrize(
    "host",
    """0.0.0.0 127.0.0.1 169.254.1.1 224.0.0.251 239.1.2.3 255.255.255.255 240.0.0.1
    192.168.1.255 192.168.1.0 192.168.1.10 10.77.1.2 ::1 :: ff02::fb fe80::1 fd11:2233:4455::7
    ::ffff:192.168.1.20 ::ffff:127.0.0.1 2001:db8:1::10""".split(),
)
def test_places_that_are_never_probed(host: str) -> None:
    assert not permitted((host, 51820), AROUND)
    assert probeable([Candidate.of(Kind.LAN, (host, 51820))], AROUND, OWN_PUBLIC) == []


def test_port_0_is_never_probed() -> None:
    assert not permitted(("203.0.113.9", 0), AROUND)
    assert permitted(("203.0.113.9", 1), AROUND)


@pytest.mark.parametrize("host", "10.0.0.5 172.16.3.4 192.168.2.5 100.64.1.1 fd00::5".split())
def test_private_places_need_a_subnet_or_a_public_address_in_common(host: str) -> None:
    private = Candidate.of(Kind.LAN, (host, 51820))
    elsewhere = Candidate.of(Kind.OBSERVED, ("203.0.113.9", 4000))
    here = Candidate.of(Kind.OBSERVED, ("198.51.100.1", 4001))
    assert probeable([private, elsewhere], AROUND, OWN_PUBLIC) == [elsewhere]
    assert probeable([private, here], AROUND, OWN_PUBLIC) == [private, here]
    claimed = Candidate.of(Kind.CONFIGURED, ("198.51.100.1", 4001))
    assert private not in probeable([private, claimed], AROUND, OWN_PUBLIC)


def test_a_neighbour_is_probed() -> None:
    near = Candidate.of(Kind.LAN, ("192.168.1.20", 51820))
    assert probeable([near], AROUND, OWN_PUBLIC) == [near]


def test_a_peer_behind_our_router_cannot_have_us_scan() -> None:
    scan = [Candidate.of(Kind.LAN, (f"10.0.0.{n}", 22)) for n in range(1, 16)]
    here = Candidate.of(Kind.OBSERVED, ("198.51.100.1", 4001))
    found = probeable([here, *scan], AROUND, OWN_PUBLIC)
    assert len(found) == 1 + SHARED_MAX


def test_doubles_count_once() -> None:
    one = Candidate.of(Kind.OBSERVED, ("203.0.113.9", 4000))
    other = Candidate.of(Kind.MAPPED, ("203.0.113.9", 4000))
    assert probeable([one, other], AROUND, OWN_PUBLIC) == [one]


@pytest.mark.parametrize(
    ("place", "kind", "own", "peer", "expected"),
    [
        (("192.168.1.20", 1), Kind.LAN, NatKind.EASY, NatKind.EASY, PathClass.LAN),
        (("10.1.1.1", 1), Kind.LAN, NatKind.EASY, NatKind.EASY, PathClass.LAN),
        (("2001:db8:1::11", 1), Kind.IPV6, NatKind.EASY, NatKind.EASY, PathClass.LAN),
        (("2001:db8:2::11", 1), Kind.IPV6, NatKind.EASY, NatKind.EASY, PathClass.IPV6),
        (("203.0.113.9", 1), Kind.OBSERVED, NatKind.EASY, NatKind.EASY, PathClass.PUNCHED),
        (("203.0.113.9", 1), Kind.OBSERVED, NatKind.NONE, NatKind.EASY, PathClass.PUBLIC),
        (("203.0.113.9", 1), None, NatKind.HARD, NatKind.NONE, PathClass.PUBLIC),
        (("203.0.113.9", 1), Kind.MAPPED, NatKind.HARD, NatKind.HARD, PathClass.PUBLIC),
    ],
)
def test_classes(
    place: tuple[str, int], kind: Kind | None, own: NatKind, peer: NatKind, expected: PathClass
) -> None:
    assert path_class(place, kind, AROUND, own, peer) is expected


def test_a_path_over_our_own_mapped_port_is_public() -> None:
    seen = ("198.51.100.1", 4000)
    found = path_class(("203.0.113.9", 1), None, AROUND, NatKind.EASY, NatKind.HARD, seen)
    assert found is PathClass.PUBLIC


def test_own_candidates_are_bounded_and_leave_out_what_nobody_can_use() -> None:
    many = tuple(("203.0.113.9", port) for port in range(1, 40))
    around = Surroundings(
        interfaces=(ip_interface("127.0.0.1/8"), ip_interface("fe80::1/64")), configured=many
    )
    assert len(own_candidates(around, [])) == CANDIDATES_MAX
    alone = Surroundings(interfaces=around.interfaces)
    assert own_candidates(alone, []) == ()
    found = own_candidates(AROUND, [("198.51.100.1", 4000), ("198.51.100.1", 7)])
    assert [(c.kind, c.place) for c in found] == [
        (Kind.MAPPED, ("198.51.100.1", 4000)),
        (Kind.OBSERVED, ("198.51.100.1", 7)),
        (Kind.LAN, ("192.168.1.10", 51820)),
        (Kind.IPV6, ("2001:db8:1::10", 51820)),
    ]


def test_the_intake_bounds_new_places_and_lets_known_ones_pass() -> None:
    intake = Intake()
    taken = [intake.admit(("203.0.113.9", port), 0.0) for port in range(1, NEW_PER_MINUTE + 10)]
    assert sum(taken) == NEW_PER_MINUTE
    assert intake.admit(("203.0.113.9", 1), 30.0)
    assert not intake.admit(("203.0.113.9", 60000), 59.0)
    assert intake.admit(("203.0.113.9", 60000), 61.0)
