"""What nodes say to each other about ownership, in UDP datagrams over the overlay. A core.

    item      from → to                 means
    ----      ---------                 -----
    Claim     owner → head              let me command this deployment's ring; repeated, it renews
    Grant     head → owner              you may, with this token; and how the ring is
    Refuse    head → claimant           another may, or nobody yet; and how the ring is
    Release   owner → head              I give this token back
    Beat      owner → deputies, rivals  I coordinate this deployment, with that head and token
    Hint      owner → its successor     that node is head of this deployment
    Here      head → who comes first    I run this deployment, and its lease is not yours

Every item is idempotent and may be lost, delayed, doubled or overtaken. A datagram is a msgpack
array of the version and its items. WireGuard says who sent it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec

from agent.errors import PeerError
from agent.membership import wire
from agent.ownership.lease import Epoch, NodeBytes, Token

VERSION = 1
# IPv6's least MTU, 1280, without the headers of IPv6 and UDP, and some room.
MAX_DATAGRAM_BYTES = 1200
MAX_ITEMS = 200

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
# How a ring is, as far as ownership minds; `owner.Phase` names them.
_PhaseNumber = Annotated[int, msgspec.Meta(ge=0, le=4)]


class Report(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a ring is at its head: its phase, and a number that grows when its details change."""

    phase: _PhaseNumber = 0
    revision: _Number = 0


class _Item(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: Name


class Claim(_Item, frozen=True, tag="c"):
    """`number` grows with each new claim of the sender; `sent_us` is its own clock, echoed."""

    number: _Number
    after: Epoch
    sent_us: _Number


class Grant(_Item, frozen=True, tag="g"):
    """`number` and `sent_us` are the claim's."""

    token: Token
    number: _Number
    sent_us: _Number
    report: Report


class Refuse(_Item, frozen=True, tag="n"):
    """`holder` renewed its lease `age_us` ago and has it for `left_us` more; None: nobody may."""

    number: _Number
    holder: Token | None
    age_us: _Number
    left_us: _Number
    report: Report


class Release(_Item, frozen=True, tag="r"):
    """The token is not used any more."""

    token: Token


class Beat(_Item, frozen=True, tag="b"):
    """`head` is a node id (32 bytes), None while there is none.

    `deputy`: the receiver hears this each half second, and takes over when it does not.
    """

    head: NodeBytes | None
    token: Token | None
    deputy: bool


class Hint(_Item, frozen=True, tag="h"):
    """`head` (32 bytes) runs it, as far as the sender knew."""

    head: NodeBytes


class Here(_Item, frozen=True, tag="i"):
    """The sender runs it."""

    report: Report


Item = Claim | Grant | Refuse | Release | Beat | Hint | Here

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[tuple[int, list[Item]]] = msgspec.msgpack.Decoder(
    tuple[int, list[Item]]
)


def encode(items: Sequence[Item]) -> Iterator[bytes]:
    """Return the items as few datagrams as hold them, each of at most MAX_DATAGRAM_BYTES."""
    waiting: list[msgspec.Raw] = []
    size = 0
    for item in items:
        raw = _encoder.encode(item)
        if waiting and (size + len(raw) > MAX_DATAGRAM_BYTES - 8 or len(waiting) == MAX_ITEMS):
            yield _encoder.encode((VERSION, waiting))
            waiting, size = [], 0
        waiting.append(msgspec.Raw(raw))
        size += len(raw)
    if waiting:
        yield _encoder.encode((VERSION, waiting))


def decode(datagram: bytes) -> list[Item]:
    """Return a datagram's items; raises PeerError for anything that `encode` would not make."""
    version, items = wire.read(_decoder, datagram, "a beat")
    if version != VERSION or len(items) > MAX_ITEMS:
        raise PeerError(f"a beat of version {version} with {len(items)} items is not understood")
    return items
