"""What a member asks a relay over the control plane, and what it answers. A core.

All of it is msgpack and crosses `PROTOCOL`, which members alone may use; the caller's identity
comes from the control plane and is no field here.

    request   answer      who may ask
    -------   ------      -----------
    Allocate  Allocated   a member, for itself and another member
    Refresh   Allocated   either node of the pair
    Release   Released    either node of the pair
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from agent.errors import PeerError
from agent.membership.wire import Key
from agent.unreadable import UNREADABLE

PROTOCOL = "/covey/relay/1"
ID_BYTES = 8

AllocationId = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
_Bytes = Annotated[int, msgspec.Meta(ge=0)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="say"):
    """A tagged msgpack map."""


class Allocate(Message, frozen=True, tag="allocate"):
    """Give me and `peer` (Ed25519) a port each; the same ones that it has if it asked first."""

    peer: Key


class Refresh(Message, frozen=True, tag="refresh"):
    """We still need it."""

    id: AllocationId


class Release(Message, frozen=True, tag="release"):
    """We need it no more."""

    id: AllocationId


Request = Allocate | Refresh | Release


class Allocated(Message, frozen=True, tag="allocated"):
    """The pair's ports: the asker sends to `port`, its peer to `peer_port`.

    `lifetime_s` is from now, without a refresh. `tunnel_port` is the relay's TCP port for those
    whose UDP is blocked, None when it has none. `left_bytes` is what the pair may still send today.
    """

    id: AllocationId
    port: _Port
    peer_port: _Port
    lifetime_s: _Seconds
    left_bytes: _Bytes
    tunnel_port: _Port | None = None


class Released(Message, frozen=True, tag="released"):
    """It is gone."""


Answer = Allocated | Released

_T = TypeVar("_T", bound=Message)
_decode_request = msgspec.msgpack.Decoder(Request).decode


def encode(message: Request | Answer) -> bytes:
    """Return the message's bytes."""
    return msgspec.msgpack.encode(message)


def decode_request(raw: bytes) -> Request:
    """Read a request; raises PeerError for anything else."""
    try:
        request: Request = _decode_request(raw)
    except UNREADABLE:
        raise _nonsense("a request") from None
    return request


def decode_answer(raw: bytes, kind: type[_T]) -> _T:
    """Read the answer of a kind; raises PeerError for anything else."""
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except UNREADABLE:
        raise _nonsense("an answer") from None


def _nonsense(what: str) -> PeerError:
    return PeerError(
        f"{what} about relays makes no sense", hint="It may run another Covey version."
    )
