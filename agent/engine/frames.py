"""What travels between the stages of a ring: frames of rows, and the few messages around them.

A core: bytes in, messages out; `link.py` has the sockets. Used by the head and by every stage.
Order on a connection is the only synchronisation, so that all stages apply the same operations to
the same KV cache.

A message is a header of 24 bytes, little-endian, and a body:

| header field  | bytes | meaning                                        |
|---------------|-------|------------------------------------------------|
| magic         | 4     | b"CVY1"                                        |
| kind          | 1     | 1 hello, 2 frame, 3 ping, 4 fault              |
| row type      | 1     | 0 f32, 1 f16, 2 q8 (a frame's rows)            |
| operations    | 2     | how many (a frame)                             |
| rows          | 4     | how many (a frame)                             |
| body          | 4     | bytes that follow                              |
| epoch         | 8     | the ring's life that this belongs to           |

A frame's body: the operations (20 bytes each), the (sequence, position) pairs (8 bytes each), the
rows. q8 stores 32 values as one f32 scale and 32 signed bytes: 9 bits a value. A hello names the
ring, the sender's stage and the layer that comes next; a fault says which stage broke, and why.
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

MAGIC = b"CVY1"
HEADER = struct.Struct("<4sBBHIIQ")
_HELLO = struct.Struct("<16sIIIB3x32s")
_OPERATION = struct.Struct("<iiiii")
_FAULT_STAGE = struct.Struct("<I")
_PAIR_BYTES = 8
_REMOVE, _COPY = 1, 2
# A batch has a few operations; this is room for one for each of many sequences.
MAX_OPERATIONS = 1_024
MAX_FAULT_BYTES = 400
_Q8_BLOCK = 32
_Q8 = np.dtype([("scale", "<f4"), ("values", "i1", (_Q8_BLOCK,))])
_F16_MAX = 65_504.0

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


class RowType(enum.IntEnum):
    """How rows are written: exact, half, or quantised to 9 bits a value."""

    F32 = 0
    F16 = 1
    Q8 = 2

    def row_bytes(self, n_embd: int) -> int:
        """Return how many bytes a row of `n_embd` values takes."""
        match self:
            case RowType.F32:
                return 4 * n_embd
            case RowType.F16:
                return 2 * n_embd
            case RowType.Q8:
                return -(-n_embd // _Q8_BLOCK) * _Q8.itemsize


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
    row_type: RowType
    model: bytes


@dataclass(frozen=True, eq=False)
class Frame:
    """Operations, then rows (n, n_embd) with their (sequence, position) pairs (n, 2)."""

    epoch: int
    operations: tuple[Operation, ...]
    pairs: Pairs
    rows: Rows


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


Message = Hello | Frame | Ping | Fault


@dataclass(frozen=True)
class Limits:
    """What a receiver takes: the width of a row, rows in a frame, and sequences."""

    n_embd: int
    max_rows: int
    n_seq: int


def encode_hello(hello: Hello) -> bytes:
    """Return the message's bytes."""
    body = _HELLO.pack(
        hello.ring, hello.stage, hello.layer, hello.n_embd, hello.row_type, hello.model
    )
    return HEADER.pack(MAGIC, Kind.HELLO, 0, 0, 0, len(body), hello.epoch) + body


def encode_ping(ping: Ping) -> bytes:
    """Return the message's bytes."""
    return HEADER.pack(MAGIC, Kind.PING, 0, 0, 0, 0, ping.epoch)


def encode_fault(fault: Fault) -> bytes:
    """Return the message's bytes; a long reason is cut."""
    reason = fault.reason.encode()[:MAX_FAULT_BYTES]
    body = _FAULT_STAGE.pack(fault.stage) + reason
    return HEADER.pack(MAGIC, Kind.FAULT, 0, 0, 0, len(body), fault.epoch) + body


def encode_frame(frame: Frame, row_type: RowType) -> list[bytes | memoryview]:
    """Return the frame's bytes in pieces, to be written in one go; rows in f32 are not copied."""
    operations = b"".join(map(_pack_operation, frame.operations))
    pairs = np.ascontiguousarray(frame.pairs, np.int32)
    rows = _write_rows(frame.rows, row_type)
    size = len(operations) + pairs.nbytes + rows.nbytes
    header = HEADER.pack(
        MAGIC, Kind.FRAME, row_type, len(frame.operations), len(frame.pairs), size, frame.epoch
    )
    return [header + operations + pairs.tobytes(), rows.reshape(-1).view(np.uint8).data]


def _pack_operation(operation: Operation) -> bytes:
    match operation:
        case Remove(sequence, start, stop):
            return _OPERATION.pack(_REMOVE, sequence, -1, start, stop)
        case Copy(source, target, start, stop):
            return _OPERATION.pack(_COPY, source, target, start, stop)


def _write_rows(rows: Rows, row_type: RowType) -> Rows:
    match row_type:
        case RowType.F32:
            return np.ascontiguousarray(rows, np.float32)
        case RowType.F16:
            return np.clip(rows, -_F16_MAX, _F16_MAX).astype(np.float16)
        case RowType.Q8:
            return _quantise(np.asarray(rows, np.float32))


def _quantise(rows: Rows) -> Rows:
    count, n_embd = rows.shape
    blocks = -(-n_embd // _Q8_BLOCK)
    if n_embd % _Q8_BLOCK:
        rows = np.pad(rows, ((0, 0), (0, blocks * _Q8_BLOCK - n_embd)))
    values = rows.reshape(count, blocks, _Q8_BLOCK)
    packed = np.empty((count, blocks), _Q8)
    scale = np.abs(values).max(axis=2, initial=0.0) / 127.0
    packed["scale"] = scale
    divisor = np.where(scale > 0.0, scale, 1.0)[:, :, None]
    packed["values"] = np.clip(np.rint(values / divisor), -127, 127)
    return packed


def _read_rows(body: memoryview, row_type: RowType, count: int, n_embd: int) -> Rows:
    match row_type:
        case RowType.F32:
            return np.frombuffer(body, "<f4").reshape(count, n_embd)
        case RowType.F16:
            return np.frombuffer(body, "<f2").reshape(count, n_embd)
        case RowType.Q8:
            blocks = -(-n_embd // _Q8_BLOCK)
            packed = np.frombuffer(body, _Q8).reshape(count, blocks)
            with np.errstate(all="ignore"):  # a scale may be anything: see `_frame`
                values = packed["values"] * packed["scale"][:, :, None]
            rows: Rows = values.reshape(count, blocks * _Q8_BLOCK)[:, :n_embd]
            return rows


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
                row_bytes = self._row_type.row_bytes(self._limits.n_embd)
                expected = operations * _OPERATION.size + rows * (_PAIR_BYTES + row_bytes)
                fits = size == expected
            case Kind.HELLO:
                fits = size == _HELLO.size
            case Kind.PING:
                fits = size == 0
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
                ring, stage, layer, n_embd, row_type, model = _HELLO.unpack(body)
                if row_type not in list(RowType):
                    raise self._bad(f"row type {row_type}")
                return Hello(ring, self._epoch, stage, layer, n_embd, RowType(row_type), model)
            case Kind.PING:
                return Ping(self._epoch)
            case Kind.FAULT:
                (stage,) = _FAULT_STAGE.unpack_from(body)
                text = bytes(body[_FAULT_STAGE.size :]).decode("utf-8", "replace")
                reason = "".join(letter if letter.isprintable() else " " for letter in text)
                return Fault(self._epoch, stage, reason)

    def _frame(self, body: memoryview) -> Frame:
        pairs_at = self._operations * _OPERATION.size
        rows_at = pairs_at + self._count * _PAIR_BYTES
        operations = tuple(
            self._operation(*fields) for fields in _OPERATION.iter_unpack(body[:pairs_at])
        )
        pairs = np.frombuffer(body[pairs_at:rows_at], "<i4").reshape(self._count, 2)
        if self._count and (pairs.min() < 0 or pairs[:, 0].max() >= self._limits.n_seq):
            raise self._bad("a sequence or position out of range")
        rows = _read_rows(body[rows_at:], self._row_type, self._count, self._limits.n_embd)
        # A sum is finite only if every value is; an overflow of the sum itself needs 1e308.
        with np.errstate(all="ignore"):
            total = rows.sum(dtype=np.float64)
        if not np.isfinite(total):
            raise self._bad("rows that are not finite")
        return Frame(self._epoch, operations, pairs, rows)

    def _operation(self, kind: int, first: int, second: int, start: int, stop: int) -> Operation:
        known = range(self._limits.n_seq)
        if start < -1 or stop < -1 or first not in known:
            raise self._bad("an operation out of range")
        if kind == _REMOVE and second == -1:
            return Remove(first, start, stop)
        if kind == _COPY and second in known:
            return Copy(first, second, start, stop)
        raise self._bad(f"operation {kind}")
