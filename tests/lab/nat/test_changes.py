"""What happens to sites: mappings die, addresses change, packets are lost, UDP is blocked."""

from __future__ import annotations

import socket
import time

import pytest
from nat_sockets import ARRIVES_S, come, crosses, seen_as, send, udp

from agent.demo.natlab import NatLab, Site

ONE, OTHER = 7001, 7002
NEVER_S = 0.15

Rendezvous = tuple[Site, Site]


@pytest.mark.parametrize("name", ["easy", "address", "double", "cgnat", "hard"])
def test_remap(name: str, internet: NatLab, rendezvous: Rendezvous) -> None:
    """The old port is dead, the new one is another, and an easy NAT is easy still."""
    site, (first, second) = internet.sites[name], rendezvous
    with (
        udp(site.machines[0], 50201) as inside,
        udp(first.machines[0], ONE) as one,
        udp(second.machines[0], ONE) as two,
    ):
        before = seen_as(inside, one, (first.address, ONE))
        old = before
        for _ in range(2):
            internet.remap(site)
            assert not crosses(one, inside, old, NEVER_S)
            new = seen_as(inside, one, (first.address, ONE))
            assert new[0] == site.address
            assert new != old
            assert crosses(one, inside, new, ARRIVES_S)
            same = seen_as(inside, two, (second.address, ONE)) == new
            assert same is (name != "hard")
            old = new


@pytest.mark.parametrize("name", ["easy", "hard", "double", "public", "cgnat"])
def test_change_of_address(name: str, internet: NatLab, rendezvous: Rendezvous) -> None:
    site, (first, _) = internet.sites[name], rendezvous
    with udp(site.machines[0], 50202) as inside, udp(first.machines[0], ONE) as one:
        old = seen_as(inside, one, (first.address, ONE))
        new_address = internet.change_address(site)
        assert new_address == site.address != old[0]
        assert not crosses(one, inside, old, NEVER_S)
        new = seen_as(inside, one, (first.address, ONE))
        assert new[0] == new_address
        assert crosses(one, inside, new, ARRIVES_S)
    if name == "public":
        assert site.machines[0].address == new_address


def test_a_hairpin_survives_another_address(internet: NatLab, rendezvous: Rendezvous) -> None:
    site, (first, _) = internet.sites["cgnat"], rendezvous
    internet.change_address(site)
    with (
        udp(site.machines[0], 50203) as left,
        udp(site.machines[1], 50204) as right,
        udp(first.machines[0], ONE) as one,
    ):
        left_outer = seen_as(left, one, (first.address, ONE))
        right_outer = seen_as(right, one, (first.address, ONE))
        crosses(left, right, right_outer, NEVER_S)
        assert seen_as(right, left, left_outer) == right_outer


@pytest.mark.parametrize("name", ["easy", "address", "double"])
def test_mappings_die_of_silence(name: str, internet: NatLab, rendezvous: Rendezvous) -> None:
    site, (first, _) = internet.sites[name], rendezvous
    internet.udp_timeout(site, 1)
    try:
        with udp(site.machines[0], 50205) as inside, udp(first.machines[0], ONE) as one:
            outer = seen_as(inside, one, (first.address, ONE))
            assert crosses(one, inside, outer, ARRIVES_S)
            # Answered or not, it lives as long as something passes.
            for _ in range(2):
                time.sleep(0.6)
                send(inside, (first.address, ONE), b"alive")
            assert crosses(one, inside, outer, ARRIVES_S)
            time.sleep(1.2)
            assert not crosses(one, inside, outer, NEVER_S)
    finally:
        internet.udp_timeout(site, 120)


@pytest.mark.parametrize("name", ["easy", "public"])
def test_udp_blocked_and_free_again(name: str, internet: NatLab, rendezvous: Rendezvous) -> None:
    """Also for flows that were there before."""
    site, (first, _) = internet.sites[name], rendezvous
    with udp(site.machines[0], 50206) as inside, udp(first.machines[0], ONE) as one:
        outer = seen_as(inside, one, (first.address, ONE))
        internet.block_udp(site, True)
        try:
            assert not crosses(inside, one, (first.address, ONE), NEVER_S)
            assert not crosses(one, inside, outer, NEVER_S)
        finally:
            internet.block_udp(site, False)
        assert crosses(inside, one, (first.address, ONE), ARRIVES_S)
        assert crosses(one, inside, outer, ARRIVES_S)


@pytest.mark.parametrize("percent", [0, 30, 100])
def test_loss(percent: int, internet: NatLab, rendezvous: Rendezvous) -> None:
    """Of 1,000 packets each way so many are lost, within 5 standard deviations."""
    site, (first, _) = internet.sites["easy"], rendezvous
    total = 1000
    with udp(site.machines[0], 50207) as inside, udp(first.machines[0], ONE) as one:
        outer = seen_as(inside, one, (first.address, ONE))
        internet.loss(site, percent)
        try:
            out = lost(inside, one, (first.address, ONE), total)
            back = lost(one, inside, outer, total)
        finally:
            internet.loss(site, 0)
    slack = 5 * (total * percent / 100 * (1 - percent / 100)) ** 0.5
    for count in (out, back):
        assert abs(count - total * percent / 100) <= slack


def lost(source: socket.socket, receiver: socket.socket, place: tuple[str, int], total: int) -> int:
    """Return how many of so many packets do not come."""
    came = 0
    for number in range(total):
        send(source, place, b"n%d" % number)
        # Few enough at a time for the receiver's buffer.
        if number % 50 == 49:
            while come(receiver, 0.01) is not None:
                came += 1
    return total - came


def test_loss_of_one_site_is_its_own(internet: NatLab, rendezvous: Rendezvous) -> None:
    first, second = rendezvous
    internet.loss(internet.sites["easy"], 100)
    try:
        with udp(first.machines[0], ONE) as one, udp(second.machines[0], OTHER) as other:
            assert crosses(one, other, (second.address, OTHER), ARRIVES_S)
    finally:
        internet.loss(internet.sites["easy"], 0)
