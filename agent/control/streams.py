"""One libp2p stream: agree on a protocol, move one frame each way, leave nothing behind.

trio, imported in the control plane's thread only. A `Talk` wraps libp2p's `NetStream`, which is all
that it takes of the library. The caller of a request ends its stream with a reset,
once it has the whole reply: libp2p keeps a stream that only one side has closed, for ever.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.protocol_muxer.exceptions import MultiselectError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.yamux.yamux import (
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    TYPE_DATA,
    YAMUX_HEADER_FORMAT,
)

from agent.control import frames

log = logging.getLogger(__name__)

MULTISTREAM = "/multistream/1.0.0"
# GossipSub's streams, which live as long as their connection.
GOSSIP = "/meshsub/1.1.0"
NOT_SERVED = "na"
# A negotiation takes two lines of at most 102 bytes each; GossipSub offers four short names.
NEGOTIATION_BYTES = 512
# After its reply a stream waits so long for the peer to have read it.
LINGER_S = 10.0
# A goodbye (a reset, a close), or asking for a stream, may take so long.
GOODBYE_LIMIT_S = 2.0
READ_BYTES = 64 * 1024


class NotServedError(Exception):
    """The peer has no handler for the protocol."""


class StreamRefusedError(Exception):
    """The peer ended the stream before it had agreed to the protocol; the connection goes on."""


class Talk:
    """One stream and what has been read from it ahead of need; one task reads, and one writes.

    libp2p's own `read` sends a window update each time, which costs the peer as much as a message;
    here one goes out for half a window. Its `write` takes four locks, each a turn of the scheduler;
    what fits into one frame and the peer's window goes without.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._muxed = stream.muxed_stream
        self._ahead = bytearray()
        self._unacknowledged = 0
        self._negotiation_left: int | None = NEGOTIATION_BYTES

    @property
    def ahead(self) -> int:
        """How many bytes have been read ahead."""
        return len(self._ahead)

    def negotiated(self) -> None:
        """Lift the bound on what may be read: libp2p's negotiation has none of its own."""
        self._negotiation_left = None

    async def read(self, n: int) -> bytes:
        """Return 1 to `n` bytes; raises libp2p's errors at the end of the stream."""
        if self._negotiation_left is not None:
            if n > self._negotiation_left:
                raise MultiselectError("too much in the negotiation")
            self._negotiation_left -= n
        if not self._ahead:
            self._ahead += await self._receive()
            if not self._ahead:
                raise StreamEOF
        data = bytes(self._ahead[:n])
        del self._ahead[:n]
        return data

    async def _receive(self) -> bytes:
        data: bytes = await self._muxed.conn.read_stream(self._muxed.stream_id, READ_BYTES)
        self._unacknowledged += len(data)
        if self._unacknowledged >= self._muxed.target_recv_window // 2:
            read, self._unacknowledged = self._unacknowledged, 0
            await self._muxed._auto_tune_and_send_window_update(bytes_read=read)
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        muxed = self._muxed
        fits = len(data) <= min(muxed.send_window, MAX_MESSAGE_SIZE - HEADER_SIZE)
        if not fits or muxed.closed or muxed.send_closed:
            await self.stream.write(data)
            return
        muxed.send_window -= len(data)
        header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, muxed.stream_id, len(data))
        await muxed.conn._write_frame(header + data)


async def open_stream(connection: Any, protocol: str) -> Talk:
    """Return a talk on which the peer has agreed to the protocol.

    `connection` is libp2p's. Raises NotServedError, StreamRefusedError; any other exception says
    that the connection is dead.
    """
    stream = None
    # Shielded: libp2p loses a stream that is cancelled while it is being opened.
    with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_LIMIT_S):
        stream = await connection.new_stream()
    if stream is None:
        raise MultiselectError("no stream in time")
    written = False
    try:
        # Both lines at once: one round trip instead of two.
        await stream.write(_line(MULTISTREAM) + _line(protocol))
        written = True
        talk = Talk(stream)
        lines = MultiselectCommunicator(talk)
        if await lines.read() != MULTISTREAM:
            raise MultiselectError("not multistream")
        answer = await lines.read()
        talk.negotiated()
    except BaseException as error:
        # When a connection ends, libp2p says so here before it wakes those who read from it.
        alive = written and not connection.muxed_conn.event_shutting_down.is_set()
        await reset(stream)
        if alive and isinstance(error, Exception):
            raise StreamRefusedError from error
        raise
    if answer == protocol:
        stream.set_protocol(protocol)
        return talk
    await reset(stream)
    if answer == NOT_SERVED:
        raise NotServedError
    raise MultiselectError("another protocol than was asked for")


async def accept(talk: Talk, serves: Callable[[str], bool], *, silent: bool) -> str:
    """Agree on a protocol that `serves` allows, and return it.

    `silent`: say nothing before the peer has asked for one that is allowed, and raise otherwise; so
    a stranger does not even learn what is here. Raises MultiselectError and libp2p's other errors.
    """
    lines = MultiselectCommunicator(talk)
    if await lines.read() != MULTISTREAM:
        raise MultiselectError("not multistream")
    greeting = _line(MULTISTREAM)
    while True:
        if not silent and not talk.ahead and greeting:
            # Other programs wait for it before they ask. Ours ask at once: one answer for both.
            await talk.write(greeting)
            greeting = b""
        asked: str = await lines.read()
        if serves(asked):
            await talk.write(greeting + _line(asked))
            talk.negotiated()
            talk.stream.set_protocol(asked)
            return asked
        if silent:
            raise MultiselectError("not for strangers")
        await talk.write(greeting + _line(NOT_SERVED))
        greeting = b""


def _line(text: str) -> bytes:
    """Return a multistream message: the length (a varint; here one byte), the text, a line feed."""
    return bytes([len(text) + 1]) + text.encode() + b"\n"


async def read_exactly(talk: Talk, size: int) -> bytes:
    """Return `size` bytes; raises libp2p's errors for a broken stream."""
    data = bytearray()
    while len(data) < size:
        data += await talk.read(size - len(data))
    return bytes(data)


async def read_frame(talk: Talk, limit: int) -> bytes:
    """Return one frame's payload; raises FrameError, or libp2p's errors for a broken stream."""
    decoder = frames.FrameDecoder(limit)
    while True:
        payload = decoder.feed(await talk.read(decoder.wanted))
        if payload is not None:
            return payload


async def until_left(talk: Talk) -> None:
    """Return when the peer has closed or reset its side, or sends what nobody asked for."""
    try:
        await talk.read(1)
    except Exception as error:
        # Each is an end of the stream: closed, reset, or the connection with it.
        del error


async def linger(talk: Talk) -> None:
    """Wait, in bounded time, until the peer has the reply and has left; end the stream."""
    with trio.move_on_after(LINGER_S):
        await until_left(talk)
    await reset(talk.stream)


async def reset(stream: Any) -> None:
    """End a stream on both sides; harmless on one that has ended, and on a dead connection."""
    try:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_LIMIT_S):
            await stream.reset()
    except Exception as error:
        log.debug("a stream was ended without a goodbye: %r", error)


@asynccontextmanager
async def ending(talk: Talk) -> AsyncIterator[None]:
    """End the stream on the way out, whatever happens inside."""
    try:
        yield
    finally:
        await reset(talk.stream)
