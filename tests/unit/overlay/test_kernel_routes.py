"""What the kernel's routing makes of the peers' MTUs, on each real backend."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from pyroute2 import IPRoute

from agent.overlay.routes import METRIC

B6, B4 = IPv6Network("fd12:3456:789a::2/128"), IPv4Network("10.77.2.2/32")


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


def test_the_kernel_has_them_and_an_operators_are_left_alone(wired: Any) -> None:
    first, second = wired.up()
    host, name = wired.hosts[0], wired.names[0]
    first.close()
    first = wired.open(0, mtu=1440)
    first.apply([wired.peer(1)])
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
    assert wired.ping(0, "fd12:3456:789a::2")
    assert wired.ping(0, "10.77.2.2")
    first.route({B6: 1312, B4: 1440})
    assert host.run(_routes, name)[str(B6)] == [(1312, METRIC)]
    first.route({})
    assert host.run(_routes, name) == meshes | {str(B4): [operator]}
    assert wired.ping(0, "fd12:3456:789a::2")
    second.close()


def test_a_route_that_somebody_removed_is_no_fault(wired: Any) -> None:
    host, name = wired.hosts[0], wired.names[0]
    device = wired.open(0, mtu=1440)
    device.route({B4: 1440})

    def remove() -> None:
        with IPRoute() as netlink:
            index = socket.if_nametoindex(name)
            netlink.route("del", dst=str(B4), oif=index, priority=METRIC, scope=253)

    host.run(remove)
    device.route({B4: 1312})
    assert host.run(_routes, name)[str(B4)] == [(1312, METRIC)]
