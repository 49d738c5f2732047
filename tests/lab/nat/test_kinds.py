"""Every kind of site is what it says, shown with plain sockets: mapping, filtering, hairpinning."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from nat_sockets import ARRIVES_S, all_come, come, crosses, on, seen_as, send, udp

from agent.demo.natlab import NatLab, Site
from agent.demo.natrules import KINDS, Filtering, Kind, Mapping

WIREGUARD = 51820
# Where the public machines listen.
ONE, OTHER = 7001, 7002
# How long is waited for a datagram that must not come.
NEVER_S = 0.15

Rendezvous = tuple[Site, Site]


def kinds(*, udp: bool = True) -> list[Kind]:
    return [kind for kind in KINDS.values() if kind.udp is udp]


def by_name(kind: Kind) -> str:
    return kind.name


@pytest.mark.parametrize("kind", kinds(), ids=by_name)
def test_mapping(kind: Kind, internet: NatLab, rendezvous: Rendezvous) -> None:
    """Three places see one outer port, or one each; NATs that map alike keep WireGuard's port."""
    site, (first, second) = internet.sites[kind.name], rendezvous
    with (
        udp(site.machines[0], WIREGUARD) as inside,
        udp(first.machines[0], ONE) as one,
        udp(first.machines[0], OTHER) as other,
        udp(second.machines[0], ONE) as elsewhere,
    ):
        seen = [
            seen_as(inside, one, (first.address, ONE)),
            seen_as(inside, other, (first.address, OTHER)),
            seen_as(inside, elsewhere, (second.address, ONE)),
        ]
        again = seen_as(inside, one, (first.address, ONE))
    assert {host for host, _ in seen} == {site.address}
    assert again == seen[0], "a flow keeps its port"
    ports = [port for _, port in seen]
    if kind.mapping is Mapping.DIFFERS:
        assert len(set(ports)) == 3
        assert WIREGUARD not in ports
    else:
        assert ports == [WIREGUARD] * 3


@pytest.mark.parametrize("kind", kinds(), ids=by_name)
def test_filtering(kind: Kind, internet: NatLab, rendezvous: Rendezvous) -> None:
    """After one place was sent to, who comes in: it, its host's other port, a stranger."""
    site, (first, second) = internet.sites[kind.name], rendezvous
    with (
        udp(site.machines[0]) as inside,
        udp(first.machines[0], ONE) as one,
        udp(first.machines[0], OTHER) as other,
        udp(second.machines[0], ONE) as stranger,
    ):
        outer = seen_as(inside, one, (first.address, ONE))
        for sender, data in ((stranger, b"stranger"), (other, b"other port"), (one, b"answer")):
            send(sender, outer, data)
        came = {packet.data for packet in all_come(inside, b"answer")}
    expected = {b"answer"}
    if kind.filtering is not Filtering.PORT:
        expected.add(b"other port")
    if kind.filtering is Filtering.OPEN:
        expected.add(b"stranger")
    assert came == expected


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.levels], ids=by_name)
def test_nobody_gets_in_unasked(kind: Kind, internet: NatLab, rendezvous: Rendezvous) -> None:
    """A port that nothing was sent from is closed, also where its inside keeps its port."""
    site, (first, _) = internet.sites[kind.name], rendezvous
    with udp(site.machines[0], 50123) as inside, udp(first.machines[0]) as stranger:
        assert not crosses(stranger, inside, (site.address, 50123), NEVER_S)


def test_an_address_filter_lets_answers_out_from_the_same_port(
    internet: NatLab, rendezvous: Rendezvous
) -> None:
    """What the inside sends back to a port that it let in comes from the outer port."""
    site, (first, _) = internet.sites["address"], rendezvous
    with (
        udp(site.machines[0], 50124) as inside,
        udp(first.machines[0], ONE) as one,
        udp(first.machines[0], OTHER) as other,
    ):
        outer = seen_as(inside, one, (first.address, ONE))
        assert crosses(other, inside, outer, ARRIVES_S)
        assert seen_as(inside, other, (first.address, OTHER)) == outer
        # And the answer did not hand the port to whoever it went to.
        assert crosses(one, inside, outer, ARRIVES_S)


@pytest.mark.parametrize("name", ["lan", "cgnat"])
def test_hairpin(name: str, internet: NatLab, rendezvous: Rendezvous) -> None:
    """Two of one site by way of their outer places: only the carrier's NAT turns packets round."""
    site, (first, _) = internet.sites[name], rendezvous
    with (
        udp(site.machines[0], 50130) as left,
        udp(site.machines[1], 50131) as right,
        udp(first.machines[0], ONE) as one,
    ):
        left_outer = seen_as(left, one, (first.address, ONE))
        right_outer = seen_as(right, one, (first.address, ONE))
        # Each opens its own home's NAT for the other.
        crosses(left, right, right_outer, NEVER_S)
        assert crosses(right, left, left_outer, NEVER_S) is site.kind.hairpin
        if site.kind.hairpin:
            assert seen_as(left, right, right_outer) == left_outer


def test_machines_of_one_lan_reach_each_other(internet: NatLab) -> None:
    left, right = internet.sites["lan"].machines
    with udp(left, 50132) as one, udp(right, 50133) as two:
        assert seen_as(one, two, (right.address, 50133)) == (left.address, 50132)


def test_homes_of_one_carrier_do_not_by_their_own_addresses(internet: NatLab) -> None:
    """Both are 192.168.1.2: what is sent there stays with the sender."""
    left, right = internet.sites["cgnat"].machines
    assert left.address == right.address
    with udp(left, 50134) as one, udp(right, 50135) as two, udp(left, 50135) as own:
        assert not crosses(one, two, (right.address, 50135), NEVER_S)
        assert crosses(one, own, (right.address, 50135), ARRIVES_S)


def test_two_machines_with_one_port_get_two(internet: NatLab, rendezvous: Rendezvous) -> None:
    """The second of a LAN with WireGuard's port loses it towards whom the first talks to.

    And there alone: a place that the first does not talk to sees it with the port kept when that
    came first, so that an easy NAT looks hard to the second machine.
    """
    site, (first, second) = internet.sites["lan"], rendezvous
    with (
        udp(site.machines[0], 50140) as left,
        udp(site.machines[1], 50140) as right,
        udp(first.machines[0], ONE) as one,
        udp(second.machines[0], ONE) as two,
    ):
        assert seen_as(left, one, (first.address, ONE)) == (site.address, 50140)
        assert seen_as(right, two, (second.address, ONE)) == (site.address, 50140)
        assert seen_as(right, one, (first.address, ONE))[1] != 50140


def test_a_stranger_takes_the_port_of_a_bare_router(
    internet: NatLab, rendezvous: Rendezvous
) -> None:
    """What comes before the inside has sent decides: its port is held, and the answer has another.

    Behind a firewall the stranger's packet leaves nothing. So whose router is bare must send first.
    """
    first, _ = rendezvous
    kept = {}
    for name in ("bare", "easy"):
        site = internet.sites[name]
        with udp(site.machines[0], 50150) as inside, udp(first.machines[0], ONE) as one:
            assert not crosses(one, inside, (site.address, 50150), NEVER_S)
            kept[name] = seen_as(inside, one, (first.address, ONE))[1] == 50150
    assert kept == {"bare": False, "easy": True}


def test_a_held_port_is_free_after_silence(internet: NatLab, rendezvous: Rendezvous) -> None:
    site, (first, _) = internet.sites["bare"], rendezvous
    internet.udp_timeout(site, 1)
    try:
        with udp(site.machines[0], 50151) as inside, udp(first.machines[0], ONE) as one:
            assert not crosses(one, inside, (site.address, 50151), NEVER_S)
            assert seen_as(inside, one, (first.address, ONE))[1] != 50151
            time.sleep(1.2)
            assert seen_as(inside, one, (first.address, ONE))[1] == 50151
    finally:
        internet.udp_timeout(site, 120)


def test_a_datagram_that_dies_on_the_way_opens_a_bare_router(
    internet: NatLab, rendezvous: Rendezvous
) -> None:
    """One with a TTL that ends at the internet's router takes the port before anybody else can."""
    site, (first, _) = internet.sites["bare"], rendezvous
    with udp(site.machines[0], 50152) as inside, udp(first.machines[0], ONE) as one:
        inside.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)
        assert not crosses(inside, one, (first.address, ONE), NEVER_S)
        inside.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
        assert crosses(one, inside, (site.address, 50152), ARRIVES_S)
        assert seen_as(inside, one, (first.address, ONE)) == (site.address, 50152)


def test_blocked(internet: NatLab, rendezvous: Rendezvous) -> None:
    """No UDP passes, in neither direction; TCP goes out."""
    site, (first, _) = internet.sites["blocked"], rendezvous
    with udp(site.machines[0], 50160) as inside, udp(first.machines[0], ONE) as one:
        assert not crosses(inside, one, (first.address, ONE), NEVER_S)
        assert not crosses(one, inside, (site.address, 50160), NEVER_S)
    assert tcp(site, first, 443)
    assert tcp(site, first, 8443)


def tcp(site: Site, to: Site, port: int) -> bool:
    """Say whether a TCP connection carries a word."""
    with on(to.machines[0]):
        server = socket.create_server((to.address, port))
    with server, on(site.machines[0]):
        client = socket.create_connection((to.address, port), timeout=ARRIVES_S)
        with client, server.accept()[0] as accepted:
            client.sendall(b"word")
            accepted.settimeout(ARRIVES_S)
            return accepted.recv(4) == b"word"


def test_ipv6_has_no_nat_and_a_firewall(internet: NatLab, rendezvous: Rendezvous) -> None:
    site, (first, second) = internet.sites["ipv6"], rendezvous
    inner, near, far = (one.machines[0].address6 for one in (site, first, second))
    with (
        udp(site.machines[0], 50170, socket.AF_INET6) as inside,
        udp(first.machines[0], ONE, socket.AF_INET6) as one,
        udp(second.machines[0], ONE, socket.AF_INET6) as stranger,
    ):
        assert not crosses(one, inside, (inner, 50170), NEVER_S)
        assert seen_as(inside, one, (near, ONE)) == (inner, 50170)
        assert crosses(one, inside, (inner, 50170), ARRIVES_S)
        assert not crosses(stranger, inside, (inner, 50170), NEVER_S)
        assert seen_as(inside, stranger, (far, ONE)) == (inner, 50170)


@pytest.mark.parametrize("name", ["easy", "hard", "double"])
def test_a_nat_without_port_mapping_says_nothing(name: str, internet: NatLab) -> None:
    machine = internet.sites[name].machines[0]
    with udp(machine) as inside:
        send(inside, (machine.gateway, 5351), b"\0\0")
        assert come(inside, NEVER_S) is None


def test_threads_stay_on_their_machines(internet: NatLab) -> None:
    """What `on` does concerns its thread alone, or these tests would prove nothing."""
    seen = []
    with on(internet.sites["easy"].machines[0]):
        thread = threading.Thread(target=lambda: seen.extend(socket.if_nameindex()))
        thread.start()
        thread.join()
        here = [name for _, name in socket.if_nameindex()]
    assert "eth0" in here
    # A thread begins where the thread that started it was.
    assert [name for _, name in seen] == here
    assert "eth0" not in [name for _, name in socket.if_nameindex()]
