"""How a head announces itself in discovery: the payload of its "head" service record. A core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from agent.discovery.record import PAYLOAD_MAX_BYTES
from agent.errors import PeerError, UsageError, one_line

SERVICE = "head"


@dataclass(frozen=True)
class Head:
    """A head that answers: its model, its port on the overlay address, its context in tokens."""

    model: str
    port: int
    context: int
    ring: str


_decode = msgspec.msgpack.Decoder(tuple[tuple[str, int, int, str], ...]).decode


def encode(heads: Sequence[Head]) -> bytes:
    """Return the payload; raises UsageError when so many do not fit one record."""
    payload = msgspec.msgpack.encode([(h.model, h.port, h.context, h.ring[:8]) for h in heads])
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise UsageError(
            f"{len(heads)} deployments with these names do not fit one node's record",
            hint="Give them shorter names (--name), or let another node be the head of some.",
        )
    return payload


def decode(payload: bytes) -> list[Head]:
    """Read another node's payload; raises PeerError for what is none."""
    try:
        return [Head(*fields) for fields in _decode(payload)]
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise PeerError(f"a head's record cannot be read: {one_line(str(error))}") from None
