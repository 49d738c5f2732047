"""This machine's underlay addresses with their prefixes, for the path engine. A shell."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_interface,
)

import ifaddr

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


def underlay_interfaces(
    exclude_interface: str, exclude_networks: Sequence[Network] = ()
) -> tuple[Interface, ...]:
    """Return the addresses of this machine's interfaces that peers may reach, IPv4 first.

    Loopback, link-local and multicast addresses are left out, and so is the overlay.
    """
    found: set[Interface] = set()
    for adapter in ifaddr.get_adapters():
        if adapter.name == exclude_interface:
            continue
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            interface = ip_interface(f"{text.partition('%')[0]}/{entry.network_prefix}")
            address = interface.ip
            if address.is_loopback or address.is_link_local or address.is_multicast:
                continue
            if any(address in net for net in exclude_networks if net.version == address.version):
                continue
            found.add(interface)
    return tuple(sorted(found, key=lambda each: (each.version, int(each.ip))))
