"""This machine's interfaces on which there may be a LAN, and word of when they change.

A shell around the interface list and netlink (Linux). Used by `links.py` and `watch.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address

import ifaddr

from agent import rtnetlink
from agent.lan.announcement import Address, usable
from agent.rtnetlink import RouteEvents

# A machine with more is a host of containers; the first ones are those that it booted with.
INTERFACES_MAX = 16
LOOPBACK = "lo"
# linux/sockios.h and linux/if.h: not in Python's socket module.
_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_LOOPBACK, _IFF_MULTICAST = 0x1, 0x8, 0x1000
_IFREQ = struct.Struct("16sH22x")
_ADDRESSES = rtnetlink.IPV4_ADDRESSES | rtnetlink.IPV6_ADDRESSES


@dataclass(frozen=True)
class LanInterface:
    """One interface that is up: its addresses with their prefixes, as the system lists them."""

    name: str
    index: int
    ipv4: tuple[IPv4Interface, ...]
    ipv6: tuple[IPv6Interface, ...]
    loopback: bool = False

    @property
    def addresses(self) -> tuple[Address, ...]:
        """What others can be told: IPv4 first, of each kind those that need no luck first."""
        found: list[Address] = [entry.ip for entry in self.ipv4]
        found += [entry.ip for entry in self.ipv6]
        return tuple(
            sorted(
                (ip for ip in found if usable(ip, loopback=self.loopback)),
                key=lambda ip: (ip.is_link_local, ip.version),
            )
        )

    def near(self, address: str) -> bool:
        """Say whether an IP address (as text, perhaps with a scope) is on this link."""
        ip = ip_address(address.partition("%")[0])
        if ip.version == 4:
            return any(ip in entry.network for entry in self.ipv4)
        return ip.is_link_local or any(ip in entry.network for entry in self.ipv6)


def lan_interfaces(
    excluded: Sequence[str] = (), only: Sequence[str] | None = None
) -> list[LanInterface]:
    """Return the interfaces that are up, take multicast and have an address to tell others.

    Loopback is no LAN, unless `only` names it; `excluded` are names to leave out.
    """
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for adapter in ifaddr.get_adapters():
            name, named = adapter.name, only is not None and adapter.name in only
            if adapter.index is None or name in excluded or (only is not None and not named):
                continue
            flags = _flags(asking, name)
            loopback = bool(flags & _IFF_LOOPBACK)
            wanted = named if loopback else bool(flags & _IFF_MULTICAST)
            if not flags & _IFF_UP or not wanted:
                continue
            interface = _interface(name, adapter.index, adapter.ips, loopback)
            if interface.addresses:
                found.append(interface)
    return sorted(found, key=lambda interface: interface.index)[:INTERFACES_MAX]


class InterfaceChanges:
    """Calls back on the loop when an interface or an address comes, goes or changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._events: RouteEvents | None = None

    def start(self) -> bool:
        """Begin; False where the system does not tell (then only looking again helps)."""
        try:
            events = RouteEvents(rtnetlink.LINKS | _ADDRESSES)
        except OSError:
            return False
        self._events = events
        asyncio.get_running_loop().add_reader(events, self._drain, events)
        return True

    def stop(self) -> None:
        """End; may be called twice."""
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events)
            self._events.close()
            self._events = None

    def _drain(self, events: RouteEvents) -> None:
        """Take what there is; what it says does not matter, for the list is read anew."""
        with contextlib.suppress(OSError):
            events.read()
        self._changed()


def _flags(asking: socket.socket, name: str) -> int:
    try:
        answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
    except OSError:
        return 0  # it has just gone
    return int(_IFREQ.unpack(answer)[1])


def _interface(name: str, index: int, ips: Iterable[ifaddr.IP], loopback: bool) -> LanInterface:
    ipv4, ipv6 = [], []
    for entry in ips:
        if isinstance(entry.ip, str):
            ipv4.append(IPv4Interface((entry.ip, entry.network_prefix)))
        else:
            ipv6.append(IPv6Interface((entry.ip[0], entry.network_prefix)))
    return LanInterface(name, index, tuple(ipv4), tuple(ipv6), loopback)
