"""Reads this machine's interfaces, routes, and the way to the internet, by rtnetlink. A shell.

pyroute2's synchronous classes raise inside a running loop, so not on the loop's thread.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Any

from agent.doctor.facts import Link, Route
from agent.overlay import alias
from agent.overlay.netlink import IPRoute, NetlinkError

_log = logging.getLogger(__name__)

# linux/if.h, linux/if_arp.h, linux/rtnetlink.h.
_IFF_UP, _ARPHRD_NONE, _MAIN_TABLE = 0x1, 65534, 254
_LOOPBACK = "lo"
# Addresses that are reached by the default route or by what stands in for it; nothing is sent.
_FAR = ((socket.AF_INET, "1.1.1.1"), (socket.AF_INET6, "2606:4700:4700::1111"))


@dataclass(frozen=True)
class Interfaces:
    """`uplinks`: by which packets leave for the internet."""

    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    uplinks: tuple[str, ...] = ()


def look() -> Interfaces:
    """Return what there is; nothing where the system does not tell."""
    try:
        with IPRoute() as netlink:
            found = _links(netlink)
            names = dict(found)
            routes = tuple(
                Route(ip_network((destination, one["dst_len"])), names[index].name)
                for one in netlink.get_routes(family=socket.AF_INET, table=_MAIN_TABLE)
                if (destination := one.get_attr("RTA_DST"))
                and (index := one.get_attr("RTA_OIF")) in names
            )
            uplinks = dict.fromkeys(
                names[index].name for index in _towards_far(netlink) if index in names
            )
    except (OSError, NetlinkError) as error:
        _log.debug("interfaces cannot be read: %s", error)
        return Interfaces()
    return Interfaces(tuple(names.values()), routes, tuple(uplinks))


def _links(netlink: Any) -> list[tuple[int, Link]]:
    """Return all interfaces but loopback, by index."""
    addresses: dict[int, list[Any]] = {}
    for one in netlink.get_addr():
        text = one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS")
        if text:
            addresses.setdefault(one["index"], []).append(ip_interface((text, one["prefixlen"])))
    found = []
    for one in netlink.get_links():
        name = one.get_attr("IFLA_IFNAME")
        if name == _LOOPBACK:
            continue
        info = one.get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
        link = Link(
            name=name, kind=kind or "hardware", mtu=one.get_attr("IFLA_MTU") or 0,
            up=bool(one["flags"] & _IFF_UP),
            # A VPN's link has no hardware addresses, other than a virtual machine's.
            tunnel=one["ifi_type"] == _ARPHRD_NONE and kind in ("tun", "wireguard", "xfrm", "vti"),
            ours=alias.parse(one.get_attr("IFLA_IFALIAS") or "") is not None,
            addresses=tuple(addresses.get(one["index"], ())),
        )  # fmt: skip
        found.append((one["index"], link))
    return found


def _towards_far(netlink: Any) -> list[int]:
    found = []
    for family, address in _FAR:
        try:
            for one in netlink.route("get", family=family, dst=address):
                found.append(one.get_attr("RTA_OIF"))
        except NetlinkError:
            continue  # no route leads there
    return found
