"""What relays and their forwarders talk about: a pair, its two sides, and where each of them is.

A core. `allocation.py` decides which pairs there are, `door.py` which seat a side has; the
forwarders carry datagrams between two seats and know nothing of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from agent.errors import EnvironmentFault

Place = tuple[str, int]
"""A numeric IP address and a UDP port."""


class PortTaken(EnvironmentFault):
    """A port of the relay's range is held by another program."""

    def __init__(self, port: int, reason: str) -> None:
        super().__init__(
            f"UDP port {port} of the relay cannot be used: {reason}",
            hint=f"`ss -lunp sport = :{port}` shows what holds it.",
        )
        self.port = port


@dataclass(frozen=True)
class Seat:
    """Where one side proved to be, and which of our addresses and interfaces it came in by."""

    place: Place
    local: str
    interface: str

    @property
    def family(self) -> int:
        """4 or 6."""
        return ip_address(self.place[0]).version

    @property
    def loopback(self) -> bool:
        """Whether the side comes through this machine's own tunnel."""
        return ip_address(self.place[0]).is_loopback


@dataclass(frozen=True)
class Pair:
    """One allocation as forwarders see it: id, a port for each side, bytes/s for each side."""

    id: bytes
    ports: tuple[int, int]
    rate_bytes_s: int


Counts = dict[bytes, tuple[int, int]]
"""By pair: the bytes that came from its first and from its second side."""


def unmapped(address: str) -> str:
    """Return an address as people write it: IPv4 that a dual-stack socket met is IPv4 again."""
    found = ip_address(address.partition("%")[0])
    if found.version == 6 and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(found)
