"""This machine's default gateways, best route first, by rtnetlink. A shell.

Used by `service.py`. pyroute2's synchronous classes raise inside a running loop, and take 0.3 s to
import, so both happen in a worker thread.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

# Of a machine with more uplinks the first ones carry its traffic.
GATEWAYS_MAX = 3
_MAIN_TABLE = 254  # linux/rtnetlink.h: RT_TABLE_MAIN
_READ_S = 10.0
_ANY_PORT = 9  # connecting a UDP socket sends nothing


@dataclass(frozen=True)
class Gateway:
    """A default gateway, and our address on the way to it, which is where it shall map to."""

    address: str
    local: str


async def default_gateways(excluded_interface: str) -> list[Gateway]:
    """Return the IPv4 default gateways; raises OSError if the system does not tell."""
    async with asyncio.timeout(_READ_S):
        return await asyncio.to_thread(_read, excluded_interface)


def _read(excluded_interface: str) -> list[Gateway]:
    from agent.overlay.netlink import IPRoute, NetlinkError

    try:
        with IPRoute() as netlink:
            routes = list(netlink.get_default_routes(socket.AF_INET, _MAIN_TABLE))
    except NetlinkError as error:
        raise OSError(error.code, f"routes cannot be read: {error}") from error
    excluded = _index(excluded_interface)
    hops = sorted(
        (route.get_attr("RTA_PRIORITY") or 0, place, address)
        for place, route in enumerate(routes)
        for address, index in _hops(route)
        if index != excluded
    )
    found: list[Gateway] = []
    for _, _, address in hops:
        local = _local_address(address)
        if local is not None and all(address != known.address for known in found):
            found.append(Gateway(address, local))
    return found[:GATEWAYS_MAX]


def _hops(route: Any) -> list[tuple[str, int | None]]:
    """Return the gateways of a route, with the index of the interface that leads there."""
    several = route.get_attr("RTA_MULTIPATH")
    if several:
        pairs = [(hop.get_attr("RTA_GATEWAY"), hop["oif"]) for hop in several]
    else:
        pairs = [(route.get_attr("RTA_GATEWAY"), route.get_attr("RTA_OIF"))]
    return [(address, index) for address, index in pairs if address]


def _index(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:  # it is not there, so no route leads through it
        return None


def _local_address(gateway: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((gateway, _ANY_PORT))
        except OSError:
            return None
        return str(asking.getsockname()[0])
