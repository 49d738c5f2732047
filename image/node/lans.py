"""This machine's addresses on its LANs, for the screen and multicast DNS. A shell over `ip`."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

_TIMEOUT_S = 10.0
# Addresses of the overlay are no LAN's.
_OVERLAY = "covey0"
_LINE = re.compile(r"^(\d+): (\S+)\s+inet6? (\S+?)/", re.MULTILINE)


@dataclass(frozen=True)
class Address:
    """An address, and the number of the interface that has it."""

    index: int
    ip: IPv4Address | IPv6Address


def addresses() -> list[Address]:
    """Return the addresses that others on a LAN could use, by interface, the first ones first."""
    done = subprocess.run(
        ["ip", "-o", "address", "show", "up", "scope", "global"],
        capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
    )  # fmt: skip
    found = _LINE.findall(done.stdout)
    return [Address(int(index), ip_address(ip)) for index, name, ip in found if name != _OVERLAY]
