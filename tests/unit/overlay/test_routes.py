"""The routes that peers get: which MTU, what changes, and what the kernel makes of them."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from pyroute2 import IPRoute

from agent.overlay.device import Network
from agent.overlay.routes import METRIC, Change, differences, fitting, wanted
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


def _routes(name: str) -> dict[str, list[tuple[int, int]]]:
    """Return the MTU and the metric of each route over an interface, by network."""
    found: dict[str, list[tuple[int, int]]] = {}
    with IPRoute() as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in netlink.get_routes(
                family=family, oif=socket.if_nametoindex(name), table=254
            ):
                metrics = route.get_attr("RTA_METRICS")
                mtu = metrics.get_attr("RTAX_MTU") if metrics is not None else 0
                network = f"{route.get_attr('RTA_DST')}/{route['dst_len']}"
                found.setdefault(network, []).append((mtu, route.get_attr("RTA_PRIORITY") or 0))
    return {network: sorted(all_) for network, all_ in found.items() if "fe80" not in network}


def test_the_kernel_has_them_and_an_operators_are_left_alone(real: Any) -> None:
    first, second = real.up()
    host, name = real.hosts[0], real.names[0]
    first.close()
    first = real.open(0, mtu=1440)
    first.apply([real.peer(1)])
    meshes = {"10.77.0.0/16": [(1280, METRIC)], "fd12:3456:789a::/48": [(1280, METRIC)]}
    assert host.run(_routes, name) == meshes

    def operators() -> None:
        with IPRoute() as netlink:
            index = socket.if_nametoindex(name)
            netlink.route("add", dst=str(B4), oif=index, priority=7, metrics={"mtu": 1300})

    host.run(operators)
    first.route({B6: 1440, B4: 1408})
    first.route({B6: 1440, B4: 1408})
    operator = (1300, 7)
    assert host.run(_routes, name) == meshes | {
        str(B6): [(1440, METRIC)], str(B4): [operator, (1408, METRIC)],
    }  # fmt: skip
    assert real.ping(0, "fd12:3456:789a::2")
    assert real.ping(0, "10.77.2.2")
    first.route({B6: 1312, B4: 1440})
    assert host.run(_routes, name)[str(B6)] == [(1312, METRIC)]
    first.route({})
    assert host.run(_routes, name) == meshes | {str(B4): [operator]}
    assert real.ping(0, "fd12:3456:789a::2")
    second.close()


def test_a_route_that_somebody_removed_is_no_fault(real: Any) -> None:
    host, name = real.hosts[0], real.names[0]
    device = real.open(0, mtu=1440)
    device.route({B4: 1440})

    def remove() -> None:
        with IPRoute() as netlink:
            index = socket.if_nametoindex(name)
            netlink.route("del", dst=str(B4), oif=index, priority=METRIC, scope=253)

    host.run(remove)
    device.route({B4: 1312})
    assert host.run(_routes, name)[str(B4)] == [(1312, METRIC)]
