"""What travels between the stages of a ring: frames of rows, and the few messages around them.

A core: bytes in, messages out; `link.py` has the sockets, `rows.py` writes and reads rows in the
types below. Used by the head and by every stage. Order on a connection is the only synchronisation,
so that all stages apply the same operations to the same KV cache.

A message is a header of 24 bytes, little-endian, and a body:

| header field  | bytes | meaning                                                |
|---------------|-------|--------------------------------------------------------|
| magic         | 4     | b"CVY2"                                                |
| kind          | 1     | 1 hello, 2 frame, 3 ping, 4 fault, 5 probe, 6 echo     |
| row type      | 1     | 0 f32, 1 f16, 2 q8 (a frame's rows)                    |
| operations    | 2     | how many (a frame)                                     |
| rows          | 4     | how many (a frame)                                     |
| body          | 4     | bytes that follow                                      |
| epoch         | 8     | the ring's life that this belongs to                   |

A frame's body: the operations (20 bytes each), the (sequence, position) pairs (8 bytes each), the
rows. q8 is llama.cpp's Q8_0: 32 values as one f16 scale and 32 signed bytes, 8.5 bits a value. A
hello names the ring, the sender's stage and the layer that comes next; a fault says which stage
broke, and why. A probe is as large as its sender likes, and answered with an echo (`calibrate.py`).
Whatever does not fit raises PeerError, and nothing is allocated for a length that cannot be true.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.errors import PeerError

MAGIC = b"CVY2"
HEADER = struct.Struct("<4sBBHIIQ")
_HELLO = struct.Struct("<16sIII32s")
_OPERATION = struct.Struct("<iiiii")
_FAULT_STAGE = struct.Struct("<I")
PAIR_BYTES = 8
_REMOVE, _COPY = 1, 2
# A batch has a few operations; this is room for one for each of many sequences.
MAX_OPERATIONS = 1_024
MAX_FAULT_BYTES = 400
MAX_PROBE_BYTES = 4 << 20
Q8_BLOCK = 32
_Q8_BLOCK_BYTES = 2 + Q8_BLOCK
_POSITIONS = 1 << 31

Ints = npt.NDArray[np.int32]
Marks = npt.NDArray[np.int8]
Pairs = npt.NDArray[np.int32]
Rows = npt.NDArray[Any]


class Kind(enum.IntEnum):
    """What a message is."""

    HELLO = 1
    FRAME = 2
    PING = 3
    FAULT = 4
    PROBE = 5
    ECHO = 6


class RowType(enum.IntEnum):
    """How rows are written: exact, half, or quantised to 8.5 bits a value."""

    F32 = 0
    F16 = 1
    Q8 = 2

    def row_bytes(self, n_embd: int) -> int:
        """Return how many bytes a row of `n_embd` values takes; q8 wants a multiple of 32."""
        match self:
            case RowType.F32:
                return 4 * n_embd
            case RowType.F16:
                return 2 * n_embd
            case RowType.Q8:
                return n_embd // Q8_BLOCK * _Q8_BLOCK_BYTES


@dataclass(frozen=True)
class Remove:
    """Forget positions [start, stop) of a sequence; -1 leaves an end open."""

    sequence: int
    start: int = -1
    stop: int = -1


@dataclass(frozen=True)
class Copy:
    """Let `target` share positions [start, stop) of sequence `source`; -1 leaves an end open."""

    source: int
    target: int
    start: int = -1
    stop: int = -1


Operation = Remove | Copy


@dataclass(frozen=True)
class Hello:
    """The first message on a connection, in both directions.

    `ring` has 16 bytes. `stage` is the sender's, `layer` the first one that is not yet computed in
    what the sender sends on, and `model` the SHA-256 (32 bytes) of the model's header.
    """

    ring: bytes
    epoch: int
    stage: int
    layer: int
    n_embd: int
    model: bytes


@dataclass(frozen=True, eq=False)
class Frame:
    """Operations, then rows with their (sequence, position) pairs (n, 2).

    f32 rows are (n, n_embd) values; those of another type (n, row bytes) bytes (`rows.py`).
    """

    epoch: int
    operations: tuple[Operation, ...]
    pairs: Pairs
    rows: Rows
    row_type: RowType = RowType.F32


@dataclass(frozen=True)
class Ping:
    """A sign of life of a stage that has nothing to send."""

    epoch: int


@dataclass(frozen=True)
class Fault:
    """The ring is broken at `stage`; passed on until it reaches the head."""

    epoch: int
    stage: int
    reason: str


@dataclass(frozen=True)
class Probe:
    """Bytes that say nothing, so that their sender learns how long they take."""

    epoch: int


@dataclass(frozen=True)
class Echo:
    """A probe has come whole; sent back on the same connection."""

    epoch: int


Message = Hello | Frame | Ping | Fault | Probe | Echo


@dataclass(frozen=True)
class Limits:
    """What a receiver takes: the width of a row, rows in a frame, and sequences."""

    n_embd: int
    max_rows: int
    n_seq: int


def encode_hello(hello: Hello) -> bytes:
    """Return the message's bytes."""
    body = _HELLO.pack(hello.ring, hello.stage, hello.layer, hello.n_embd, hello.model)
    return HEADER.pack(MAGIC, Kind.HELLO, 0, 0, 0, len(body), hello.epoch) + body


def encode_ping(ping: Ping) -> bytes:
    """Return the message's bytes."""
    return HEADER.pack(MAGIC, Kind.PING, 0, 0, 0, 0, ping.epoch)


def encode_fault(fault: Fault) -> bytes:
    """Return the message's bytes; a long reason is cut."""
    reason = fault.reason.encode()[:MAX_FAULT_BYTES]
    body = _FAULT_STAGE.pack(fault.stage) + reason
    return HEADER.pack(MAGIC, Kind.FAULT, 0, 0, 0, len(body), fault.epoch) + body


def encode_probe(probe: Probe, size: int) -> list[bytes | memoryview]:
    """Return the message's bytes in pieces, the last a body of `size` bytes."""
    return [HEADER.pack(MAGIC, Kind.PROBE, 0, 0, 0, size, probe.epoch), bytes(size)]


def encode_echo(echo: Echo) -> bytes:
    """Return the message's bytes."""
    return HEADER.pack(MAGIC, Kind.ECHO, 0, 0, 0, 0, echo.epoch)


def encode_frame(frame: Frame) -> list[bytes | memoryview]:
    """Return the frame's bytes in pieces, to be written in one go; the rows are not copied."""
    operations = b"".join(map(_pack_operation, frame.operations))
    pairs = frame.pairs.tobytes()
    size = len(operations) + len(pairs) + frame.rows.nbytes
    header = HEADER.pack(
        MAGIC, Kind.FRAME, frame.row_type, len(frame.operations), len(frame.pairs), size,
        frame.epoch,
    )  # fmt: skip
    start = header + operations + pairs
    return [start, frame.rows.data.cast("B")] if len(frame.pairs) else [start]


def _pack_operation(operation: Operation) -> bytes:
    match operation:
        case Remove(sequence, start, stop):
            return _OPERATION.pack(_REMOVE, sequence, -1, start, stop)
        case Copy(source, target, start, stop):
            return _OPERATION.pack(_COPY, source, target, start, stop)


def stage_name(stage: int, address: str = "") -> str:
    """Return what messages call a stage, with its overlay address where that is known."""
    name = "the head" if stage == 0 else f"stage {stage}"
    return f"{name} ({address})" if address else name


class Decoder:
    """Turns a stream of bytes into messages, without copying rows.

    Write received bytes into `space()`, then say with `advance(n)` how many came; it returns a
    message once one is complete. Raises PeerError on anything that no stage would send; the stream
    is then of no more use.
    """

    def __init__(self, limits: Limits, sender: str) -> None:
        self._limits = limits
        self._sender = sender
        self._header = bytearray(HEADER.size)
        # As unsigned numbers negative ones are too large.
        self._bounds = np.array([limits.n_seq, _POSITIONS], np.uint32)
        self._begin()

    def _begin(self) -> None:
        self._buffer = memoryview(self._header)
        self._filled = 0
        self._in_body = False

    @property
    def between(self) -> bool:
        """Whether no message has begun, so that an end of the stream is a clean one."""
        return not self._in_body and self._filled == 0

    def space(self) -> memoryview:
        """Return the memory where the next bytes belong; never empty."""
        return self._buffer[self._filled :]

    def advance(self, count: int) -> Message | None:
        """Take note of `count` bytes written to `space()`; return a message that they complete."""
        self._filled += count
        if self._filled < len(self._buffer):
            return None
        if not self._in_body:
            size = self._check_header()
            if size:
                self._buffer = np.empty(size, np.uint8).data
                self._filled = 0
                self._in_body = True
                return None
            body = memoryview(b"")
        else:
            body = self._buffer
        message = self._message(body)
        self._begin()
        return message

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes that came otherwise; return the messages that they complete."""
        found = []
        rest = memoryview(data)
        while rest:
            space = self.space()
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            rest = rest[count:]
            message = self.advance(count)
            if message is not None:
                found.append(message)
        return found

    def _bad(self, why: str) -> PeerError:
        return PeerError(f"{self._sender} sent what no stage sends: {why}.")

    def _check_header(self) -> int:
        magic, kind, row_type, operations, rows, size, epoch = HEADER.unpack(self._header)
        if magic != MAGIC:
            raise self._bad(f"it begins with {bytes(magic)!r}")
        self._operations, self._count, self._epoch = operations, rows, epoch
        try:
            self._kind = Kind(kind)
            self._row_type = RowType(row_type)
        except ValueError:
            raise self._bad(f"kind {kind}, row type {row_type}") from None
        match self._kind:
            case Kind.FRAME:
                if rows > self._limits.max_rows:
                    raise self._bad(f"{rows} rows, at most {self._limits.max_rows} are allowed")
                if operations > MAX_OPERATIONS:
                    raise self._bad(f"{operations} operations")
                if self._row_type is RowType.Q8 and self._limits.n_embd % Q8_BLOCK:
                    raise self._bad(f"q8 rows of {self._limits.n_embd} values")
                row_bytes = self._row_type.row_bytes(self._limits.n_embd)
                expected = operations * _OPERATION.size + rows * (PAIR_BYTES + row_bytes)
                fits = size == expected
            case Kind.HELLO:
                fits = size == _HELLO.size
            case Kind.PING | Kind.ECHO:
                fits = size == 0
            case Kind.PROBE:
                fits = size <= MAX_PROBE_BYTES
            case Kind.FAULT:
                fits = _FAULT_STAGE.size <= size <= _FAULT_STAGE.size + MAX_FAULT_BYTES
        if not fits:
            raise self._bad(f"a {self._kind.name.lower()} of {size} bytes")
        return int(size)

    def _message(self, body: memoryview) -> Message:
        match self._kind:
            case Kind.FRAME:
                return self._frame(body)
            case Kind.HELLO:
                ring, stage, layer, n_embd, model = _HELLO.unpack(body)
                return Hello(ring, self._epoch, stage, layer, n_embd, model)
            case Kind.PING:
                return Ping(self._epoch)
            case Kind.PROBE:
                return Probe(self._epoch)
            case Kind.ECHO:
                return Echo(self._epoch)
            case Kind.FAULT:
                (stage,) = _FAULT_STAGE.unpack_from(body)
                text = bytes(body[_FAULT_STAGE.size :]).decode("utf-8", "replace")
                reason = "".join(letter if letter.isprintable() else " " for letter in text)
                return Fault(self._epoch, stage, reason)

    def _frame(self, body: memoryview) -> Frame:
        count, row_type, n_embd = self._count, self._row_type, self._limits.n_embd
        pairs_at = self._operations * _OPERATION.size
        rows_at = pairs_at + count * PAIR_BYTES
        operations: tuple[Operation, ...] = ()
        if self._operations:
            fields = _OPERATION.iter_unpack(body[:pairs_at])
            operations = tuple(self._operation(*each) for each in fields)
        pairs = np.frombuffer(body, "<i4", 2 * count, pairs_at).reshape(count, 2)
        if (pairs.view(np.uint32) >= self._bounds).any():
            raise self._bad("a sequence or position out of range")
        if row_type is RowType.F32:
            rows = np.frombuffer(body, "<f4", count * n_embd, rows_at).reshape(count, n_embd)
        else:
            row_bytes = row_type.row_bytes(n_embd)
            rows = np.frombuffer(body, np.uint8, count * row_bytes, rows_at)
            rows = rows.reshape(count, row_bytes)
        return Frame(self._epoch, operations, pairs, rows, row_type)

    def _operation(self, kind: int, first: int, second: int, start: int, stop: int) -> Operation:
        known = range(self._limits.n_seq)
        if start < -1 or stop < -1 or first not in known:
            raise self._bad("an operation out of range")
        if kind == _REMOVE and second == -1:
            return Remove(first, start, stop)
        if kind == _COPY and second in known:
            return Copy(first, second, start, stop)
        raise self._bad(f"operation {kind}")
