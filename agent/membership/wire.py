"""Reading what others wrote: msgpack arrays whose first element is a version. A core.

One place for the three ways in which such bytes can be bad: not readable, of a newer version, or
readable but not written as we write them (two encodings of one certificate must not both count);
and for the types that all signed things share. `read` is for messages of no version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec

from agent.errors import CoveyError, PeerError, one_line
from agent.unreadable import UNREADABLE

MAX_TIME_S = 2**40
# Clocks of machines that have not reached a time server yet are often minutes off.
CLOCK_SKEW_S = 300
Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Time = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_S)]

_T = TypeVar("_T", bound=msgspec.Struct)
_M = TypeVar("_M")


def read(decoder: msgspec.msgpack.Decoder[_M], raw: bytes, what: str) -> _M:
    """Return what the decoder makes of a member's bytes; raises PeerError, begun by `what`."""
    try:
        return decoder.decode(raw)
    except UNREADABLE as error:
        raise PeerError(f"{what} cannot be read: {one_line(str(error))}") from None


class _Head(msgspec.Struct, array_like=True, frozen=True):
    version: int


def decode(
    raw: bytes, kind: type[_T], what: str, version: int, error: type[CoveyError], *,
    encode: Callable[[_T], bytes] = msgspec.msgpack.encode,
) -> _T:  # fmt: skip
    """Return `raw` as a `kind`, an array-like struct whose first field is its version.

    `what` begins the messages, as "the certificate"; raises `error` when the bytes are damaged, of
    another version than `version`, or not the bytes that encoding the result gives (`encode`).
    """
    try:
        value = msgspec.msgpack.decode(raw, type=kind)
    except UNREADABLE:
        if _version(raw) > version:
            raise newer(what, error) from None
        raise error(f"{what} is damaged") from None
    written = _version(raw)
    if written > version:
        raise newer(what, error)
    if written != version or encode(value) != raw:
        raise error(f"{what} is damaged")
    return value


def newer(what: str, error: type[CoveyError]) -> CoveyError:
    """Return the error for something that a newer Covey wrote."""
    return error(f"{what} is from a newer version of Covey", hint="Update this node, then retry.")


def _version(raw: bytes) -> int:
    try:
        return msgspec.msgpack.decode(raw, type=_Head).version
    except UNREADABLE:
        return 0
