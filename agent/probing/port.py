"""What sends and hears our datagrams on WireGuard's UDP port, as a protocol, and a fake of it.

A core: types, and a network of fakes. `rawport.py` shares the port with a running WireGuard,
`plainport.py` holds it alone. Every datagram of ours begins with MAGIC, which is no type of
WireGuard message (those are 1 to 4, little-endian), so WireGuard drops it unread. What follows
MAGIC is sealed by the path engine and is none of our business here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

MAGIC = b"CVY\x01"
# A jumbo frame. Nothing we send is larger, so nothing larger is worth a copy.
DATAGRAM_MAX = 9216

Place = tuple[str, int]
"""A numeric IP address, as Python writes it, and a UDP port."""

OnDatagram = Callable[[Place, bytes, str], None]
"""Called on the loop with the sender's place, the payload with its MAGIC, and the address of ours
that it came to (to answer from the same one)."""


class Sent(enum.Enum):
    """What became of a datagram on this machine; nobody knows whether it arrived."""

    SENT = "handed to the network"
    TOO_BIG = "larger than this machine's own link takes whole"
    NO_ROUTE = "no way to that address, or from that address of ours"
    BUSY = "the kernel's queue is full"
    REFUSED = "a packet filter of this machine, or the kernel, does not let it out"


class Port(Protocol):
    """A UDP port. All calls from one event loop; faults of this machine are EnvironmentFault."""

    @property
    def port(self) -> int:
        """Its number; 0 before `open` if any port would do."""

    def open(self, on_datagram: OnDatagram) -> None:
        """Begin to hear. Raises EnvironmentFault, and then nothing is left open."""

    def send(
        self, place: Place, payload: bytes, *, local: str | None = None, whole: bool = False
    ) -> Sent:
        """Send one datagram; raises nothing but ValueError, for what is no place.

        `local` names the address of ours that it leaves from, else the route decides. `whole`
        forbids fragments (IPv4's DF): only such a datagram measures the path's MTU.
        """

    def close(self) -> None:
        """Close; nothing is heard after it. Closing twice does nothing."""


class FakeNetwork:
    """Joins fake ports. `lossy` says which datagrams vanish, `mtu` what leaves whole.

    `later` runs a delivery later (an event loop's `call_soon`); by itself a datagram arrives at
    once.
    """

    def __init__(
        self,
        *,
        mtu: int = 1500,
        lossy: Callable[[Place, Place, bytes], bool] = lambda *_: False,
        later: Callable[[Callable[[], None]], object] = lambda deliver: deliver(),
    ) -> None:
        self.mtu = mtu
        self.lossy = lossy
        self.later = later
        self.ports: dict[Place, FakePort] = {}


class FakePort:
    """A port on a fake network; see `Port`."""

    def __init__(self, network: FakeNetwork, host: str, port: int) -> None:
        self._network = network
        self._place = (str(ip_address(host)), port)
        self._on_datagram: OnDatagram | None = None

    @property
    def port(self) -> int:
        """See `Port.port`."""
        return self._place[1]

    def open(self, on_datagram: OnDatagram) -> None:
        """See `Port.open`."""
        if self._network.ports.setdefault(self._place, self) is not self:
            raise ValueError(f"{self._place} is open already")
        self._on_datagram = on_datagram

    def send(
        self, place: Place, payload: bytes, *, local: str | None = None, whole: bool = False
    ) -> Sent:
        """See `Port.send`; only what begins with MAGIC is heard, as with the real ones."""
        headers = overhead(place[0])
        if self._on_datagram is None or local not in (None, self._place[0]):
            return Sent.NO_ROUTE
        if len(payload) > DATAGRAM_MAX or (whole and len(payload) + headers > self._network.mtu):
            return Sent.TOO_BIG
        there = self._network.ports.get((str(ip_address(place[0])), place[1]))
        if there is not None and not self._network.lossy(self._place, place, payload):
            self._network.later(lambda: there.hear(self._place, payload))
        return Sent.SENT

    def hear(self, place: Place, payload: bytes) -> None:
        """Take what the network brings."""
        if self._on_datagram is not None and payload.startswith(MAGIC):
            self._on_datagram(place, payload, self._place[0])

    def close(self) -> None:
        """See `Port.close`."""
        if self._network.ports.get(self._place) is self:
            del self._network.ports[self._place]
        self._on_datagram = None


def overhead(host: str) -> int:
    """Return the bytes that IP and UDP headers add to a payload for that address."""
    return (40 if ":" in host else 20) + 8
