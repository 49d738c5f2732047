"""What crosses one control stream: a length-prefixed request, then a length-prefixed reply.

A core: bytes in, bytes out. It is not for gossip, and not for the engine's frames. Both sides of a
stream use it: `node.py` for the lengths, `host.py` for what a reply means.

    frame    length (4 bytes, big endian), then that many bytes
    request  a frame: what the handler gets
    reply    a frame: one byte 0 and what the handler gave, or one byte 1 and a `Refusal` (msgpack)
"""

from __future__ import annotations

import msgspec

from agent.errors import CoveyError, from_wire, one_line, to_wire
from agent.unreadable import UNREADABLE

# Larger than a join reply for some 2,000 members; small enough for a few at once in memory.
MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
# A reply carries one byte in front of its payload.
MAX_FRAME_BYTES = MAX_PAYLOAD_BYTES + 1
LENGTH_BYTES = 4

_ANSWERED = b"\0"
_REFUSED = b"\1"


class FrameError(ValueError):
    """The other side sent what is no frame or no reply; the message says what, as a clause."""


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A CoveyError on the wire: the fields of `agent.errors.to_wire`."""

    kind: str
    message: str
    hint: str = ""


def encode_frame(payload: bytes) -> bytes:
    """Return `payload` (at most MAX_FRAME_BYTES) with its length in front; ValueError if longer."""
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame holds at most {MAX_FRAME_BYTES} bytes, not {len(payload)}")
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


class FrameDecoder:
    """Puts one frame together from chunks of any size, and never holds more than its limit."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._length: int | None = None

    @property
    def wanted(self) -> int:
        """How many bytes are missing, as far as is known: never 0 before the frame is whole."""
        if self._length is None:
            return LENGTH_BYTES - len(self._buffer)
        return self._length - len(self._buffer)

    def feed(self, chunk: bytes) -> bytes | None:
        """Take what arrived; return the payload once it is whole.

        Raises FrameError for a length over the limit, before anything of it is kept, and for bytes
        after the frame.
        """
        self._buffer += chunk
        if self._length is None and len(self._buffer) >= LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if length > self._limit:
                self._buffer.clear()
                raise FrameError(f"a frame of {length} bytes, and the limit is {self._limit}")
            self._length = length
            del self._buffer[:LENGTH_BYTES]
        if self._length is None or len(self._buffer) < self._length:
            return None
        if len(self._buffer) > self._length:
            raise FrameError(f"{len(self._buffer) - self._length} bytes after the frame")
        return bytes(self._buffer)


def encode_reply(payload: bytes) -> bytes:
    """Return the whole reply frame for a handler's answer; ValueError if it is too long."""
    return encode_frame(_ANSWERED + payload)


def encode_refusal(error: CoveyError) -> bytes:
    """Return the whole reply frame for an error that a handler raised."""
    fields = to_wire(error)
    refusal = Refusal(fields["kind"], one_line(fields["message"]), one_line(fields["hint"]))
    return encode_frame(_REFUSED + msgspec.msgpack.encode(refusal))


def decode_reply(reply: bytes) -> bytes:
    """Return the answer in a reply's payload (the frame without its length).

    Raises the CoveyError that the other side's handler raised, its text made fit for a terminal, or
    FrameError for anything else.
    """
    kind, body = reply[:1], reply[1:]
    if kind == _ANSWERED:
        return body
    if kind != _REFUSED:
        raise FrameError("a reply that is neither an answer nor an error")
    try:
        refusal = msgspec.msgpack.decode(body, type=Refusal)
    except UNREADABLE:
        # Text that is not UTF-8 is no DecodeError to msgspec.
        raise FrameError("an error that cannot be read") from None
    raise from_wire(
        {
            "kind": refusal.kind,
            "message": one_line(refusal.message),
            "hint": one_line(refusal.hint),
        }
    )
