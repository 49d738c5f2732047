"""The routes that peers get: which MTU, and what changes."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from agent.overlay.device import Network
from agent.overlay.routes import Change, differences, fitting, wanted
from agent.paths.mtu import STEPS_IPV4, STEPS_IPV6

A6, A4 = IPv6Network("fd12:3456:789a::1/128"), IPv4Network("10.77.1.1/32")
B6, B4 = IPv6Network("fd12:3456:789a::2/128"), IPv4Network("10.77.2.2/32")
WIREGUARD_BYTES, UDP_BYTES = 32, 8


@pytest.mark.parametrize(
    ("path", "interface", "mtu"),
    [
        (0, 1440, 1280), (1000, 1440, 1280), (1280, 1440, 1280), (1320, 1440, 1312),
        (1420, 1440, 1408), (1440, 1440, 1440), (1440, 1420, 1420), (1420, 1420, 1420),
        (1440, 1280, 1280), (1412, 9000, 1408),
    ],
)  # fmt: skip
def test_the_mtu_of_a_route(path: int, interface: int, mtu: int) -> None:
    assert fitting(path, interface) == mtu


@pytest.mark.parametrize(("steps", "ip"), [(STEPS_IPV4, 20), (STEPS_IPV6, 40)])
def test_a_packet_fits_padded_as_either_wireguard_pads_it(steps: tuple[int, ...], ip: int) -> None:
    for interface in (1280, 1408, 1420, 1440, 8920):
        for path in steps:
            carried = path + WIREGUARD_BYTES + UDP_BYTES + ip
            mtu = fitting(path, interface)
            assert 1280 <= mtu <= interface
            for size in range(1, mtu + 1):
                padded = min(-(-size // 16) * 16, interface)  # wireguard-go; the kernel's is less
                assert padded + WIREGUARD_BYTES + UDP_BYTES + ip <= carried


def test_both_addresses_of_those_whose_paths_carry_more_get_a_route() -> None:
    peers: list[tuple[tuple[Network, ...], int]] = [((A6, A4), 1440), ((B6, B4), 1280)]
    assert wanted(peers, 1440) == {A6: 1440, A4: 1440}
    assert wanted(peers, 1280) == {}
    assert wanted([((A6, A4), 0)], 1440) == {}


def test_only_what_is_new_is_changed_and_what_shrinks_comes_first() -> None:
    assert differences({A6: 1440}, {A6: 1440}) == []
    assert differences({}, {A6: 1440}) == [Change(A6, 1440, present=False)]
    before: dict[Network, int] = {A6: 1312, A4: 1440, B6: 1440}
    assert differences(before, {A6: 1440, A4: 1312, B4: 1408}) == [
        Change(B6, None, present=True),
        Change(A4, 1312, present=True),
        Change(A6, 1440, present=True),
        Change(B4, 1408, present=False),
    ]
