"""What two ends of a path say to each other: probes between their UDP ports, signals beside them.

A core: types, and the checks that decoding makes. `wire.py` seals and opens them.

    Ping  → Pong         peer to peer: are you there? I am, and saw you there
    Observe → Observed   to a rendezvous, on each of its two ports: where do you see me?
    MtuProbe → MtuAnswer peer to peer: this many bytes arrived whole
    Signal               end to end over the control plane: all about one end, newest wins
"""

from __future__ import annotations

import enum
from ipaddress import ip_address
from typing import Annotated

import msgspec

from agent.errors import PeerError
from agent.identity.keys import NodeId

Place = tuple[str, int]
"""A numeric IP address and a UDP port."""

# Every small probe and its answer: an IPv6 place, a token, a session and a stamp, and some room.
PROBE_BYTES = 128
# The largest UDP payload of an Ethernet frame over IPv4: MTU probes go up to it.
DATAGRAM_MAX_BYTES = 1472
CANDIDATES_MAX = 16
OFFERS_MAX = 4
NUMBER_MAX = 2**63 - 1
SESSION_MAX = 2**31 - 1
_IPV4_BYTES, _IPV6_BYTES, _PORT_BYTES = 4, 16, 2


class WireError(PeerError):
    """Bytes that are not for us, damaged, or seen before; the one error of decoding."""


class Kind(enum.IntEnum):
    """How a node knows of a place of its own."""

    LAN = 1
    """An IPv4 address of one of its interfaces."""
    IPV6 = 2
    """A global IPv6 address of one of its interfaces."""
    MAPPED = 3
    """A port that its router forwards (UPnP, NAT-PMP, PCP)."""
    OBSERVED = 4
    """Where a rendezvous saw it."""
    WIREGUARD = 5
    """Where WireGuard peers saw it."""
    CONFIGURED = 6
    """Its operator says so."""


class NatKind(enum.IntEnum):
    """What stands between a node and the internet."""

    UNKNOWN = 0
    NONE = 1
    """Its address is its own."""
    EASY = 2
    """One mapping for all destinations."""
    HARD = 3
    """Another mapping for each destination."""
    BLOCKED = 4
    """No UDP gets through."""


_Token = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
_Session = Annotated[int, msgspec.Meta(ge=0, le=SESSION_MAX)]
_PackedPlace = Annotated[bytes, msgspec.Meta(min_length=6, max_length=18)]


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    token: _Token


class Ping(_Message, frozen=True, tag="p"):
    """Are you there? Without `answer` it only opens the way through our own NAT.

    `nominates`: the sender uses this path. `relayed`: it went to a relay's port. `wants`: somebody
    at the sender needs the receiver, which then has to keep the path as well. `session` as below.
    """

    answer: bool = True
    nominates: bool = False
    relayed: bool = False
    wants: bool = False
    session: _Session = 0


class Pong(_Message, frozen=True, tag="q"):
    """I am, and saw you at `seen`.

    `provisional`: heard on a birthday socket, which is not yet WireGuard's way out. `session`: a
    number that the sender drew when it began to keep the receiver, 0 while its WireGuard does not
    know the receiver: then a handshake would be lost, and the path is not proved yet. When it is
    another than before, the sender's WireGuard has lost the session that there was.
    """

    seen: _PackedPlace
    provisional: bool = False
    session: _Session = 0


class Observe(_Message, frozen=True, tag="o"):
    """Where do you see me? Asked of a rendezvous, on each of its two ports."""


class Observed(_Message, frozen=True, tag="s"):
    """There."""

    seen: _PackedPlace


class MtuProbe(_Message, frozen=True, tag="m"):
    """A datagram of `size` bytes of UDP payload, sent so that nobody may fragment it."""

    size: Annotated[int, msgspec.Meta(ge=PROBE_BYTES, le=DATAGRAM_MAX_BYTES)]


class MtuAnswer(_Message, frozen=True, tag="a"):
    """It arrived whole."""

    size: Annotated[int, msgspec.Meta(ge=PROBE_BYTES, le=DATAGRAM_MAX_BYTES)]


Probe = Ping | Pong | Observe | Observed | MtuProbe | MtuAnswer


class Candidate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A place at which its owner may be reached."""

    kind: Kind
    packed: _PackedPlace

    @classmethod
    def of(cls, kind: Kind, place: Place) -> Candidate:
        """Return the candidate; raises ValueError for an address that is none."""
        return cls(kind, pack(place))

    @property
    def place(self) -> Place:
        """The place; raises WireError when it is none."""
        return unpack(self.packed)


class RelayOffer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A relay that the sender opened for the pair: which node, and the receiver's place on it.

    `ticket` is what the receiver shows to the relay when it has to come by WebSocket.
    """

    relay: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    packed: _PackedPlace
    ticket: Annotated[bytes, msgspec.Meta(max_length=64)] = b""

    @property
    def node(self) -> NodeId:
        """The relay's id."""
        return NodeId(self.relay)

    @property
    def place(self) -> Place:
        """The receiver's place on the relay; raises WireError when it is none."""
        return unpack(self.packed)


class Signal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All that one end of a pair tells the other; the newest replaces those before.

    `epoch` says which start of the sender, `sequence` grows with each signal. `heard_epoch` and
    `heard` name the newest that it has from the receiver. `answer`: this is repeated until it is
    heard. `call_me`: answer, and get ready to probe. `go`: begin now. `birthday`: the attempt for
    which the sender, behind a hard NAT, keeps its sockets open; 0: none.
    """

    epoch: _Count
    sequence: _Count
    heard_epoch: _Count = 0
    heard: _Count = 0
    nat: NatKind = NatKind.UNKNOWN
    answer: bool = False
    call_me: bool = False
    go: bool = False
    candidates: Annotated[tuple[Candidate, ...], msgspec.Meta(max_length=CANDIDATES_MAX)] = ()
    offers: Annotated[tuple[RelayOffer, ...], msgspec.Meta(max_length=OFFERS_MAX)] = ()
    birthday: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0


def pack(place: Place) -> bytes:
    """Return a place as 6 or 18 bytes; raises ValueError for what is none."""
    return ip_address(place[0]).packed + place[1].to_bytes(_PORT_BYTES, "big")


def unpack(packed: bytes) -> Place:
    """Return the place; raises WireError for another length."""
    if len(packed) not in (_IPV4_BYTES + _PORT_BYTES, _IPV6_BYTES + _PORT_BYTES):
        raise WireError("a place holds 6 or 18 bytes")
    address = ip_address(packed[:-_PORT_BYTES])
    return str(address), int.from_bytes(packed[-_PORT_BYTES:], "big")
