"""What is asked of a gateway and what it answers, the same for all three protocols. A core.

Used by the codecs, which translate to and from the wire, and by `way.py`, which knows no wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import Protocol

import msgspec

from agent import endpoint

Place = tuple[str, int]

PCP, NATPMP, UPNP = "PCP", "NAT-PMP", "UPnP"


class Kind(Enum):
    """What a request is for."""

    PROBE = "probe"  # is there somebody who speaks this protocol? changes nothing there
    CHECK = "check"  # does the gateway still have what it granted? changes nothing there
    ASK = "ask"  # grant a mapping, or renew it
    RELEASE = "release"  # take it back


@dataclass(frozen=True)
class Request:
    """One thing to ask; the external place is the one to have again, if any."""

    kind: Kind
    lifetime_s: int = 0
    external_port: int = 0
    external_address: str = ""


@dataclass(frozen=True)
class Alive:
    """The gateway speaks the protocol; its clock, and its external address if it told it."""

    epoch: int | None = None
    address: str | None = None


@dataclass(frozen=True)
class Granted:
    """Datagrams to the external port come to us; a lifetime of None ends only by release."""

    external_port: int
    lifetime_s: int | None
    epoch: int | None = None
    address: str | None = None


@dataclass(frozen=True)
class Released:
    """Nothing is mapped any more."""

    epoch: int | None = None


@dataclass(frozen=True)
class Gone:
    """The gateway no longer has what it granted."""


@dataclass(frozen=True)
class Refused:
    """No, and why as a sentence's end; `kinds` are the requests that this can be an answer to."""

    why: str
    kinds: frozenset[Kind] = frozenset(Kind)
    epoch: int | None = None
    retry_s: int | None = None


Answer = Alive | Granted | Released | Gone | Refused
LOOKING = frozenset({Kind.PROBE, Kind.CHECK})
MAPPING = frozenset({Kind.ASK, Kind.RELEASE})


class Dialect(Protocol):
    """How one protocol writes requests and reads answers; bound to one gateway and port."""

    def encode(self, request: Request) -> bytes:
        """Return the datagram that asks this."""

    def read(self, data: bytes) -> Answer | None:
        """Return what the datagram says; None if it is not an answer to us."""


class Mapping(msgspec.Struct, frozen=True):
    """A port that a gateway opened for us.

    `public` is False where the gateway's own outside is private or a provider's (CGNAT): then
    another NAT stands before it, and the place is reachable from between the two only.
    """

    protocol: str
    gateway: str
    external: Place
    lifetime_s: int | None
    public: bool

    def text(self) -> str:
        """Return it as a person reads it."""
        inside = "" if self.public else ", which is not public: another NAT stands before it"
        return f"{endpoint.join(*self.external)} by {self.protocol} from {self.gateway}{inside}"


def is_public(address: str) -> bool:
    """Say whether the address is one of the public Internet."""
    ip = ip_address(address)
    return ip.is_global and not ip.is_multicast


def can_be_external(address: str) -> bool:
    """Say whether a gateway can have this address outside at all, public or not."""
    ip = ip_address(address)
    unfit = ip.is_unspecified or ip.is_loopback or ip.is_multicast or ip.is_link_local
    return not unfit and str(ip) != "255.255.255.255"
