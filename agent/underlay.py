"""This machine's underlay addresses, as others can reach it. A shell around the interface list."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

import ifaddr


def own_addresses(
    exclude_interface: str, exclude_networks: Sequence[IPv4Network | IPv6Network] = ()
) -> list[str]:
    """Return the addresses of this machine's interfaces, IPv4 first, that others may reach.

    Loopback, link-local and multicast addresses are left out, and so are the overlay's own
    interface and networks.
    """
    found = []
    for adapter in ifaddr.get_adapters():
        if adapter.name == exclude_interface:
            continue
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            address = ip_address(text.partition("%")[0])
            if address.is_loopback or address.is_link_local or address.is_multicast:
                continue
            if any(address in net for net in exclude_networks if net.version == address.version):
                continue
            found.append(address)
    return [str(address) for address in sorted(set(found), key=lambda a: (a.version, int(a)))]
