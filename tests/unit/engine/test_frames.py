"""The wire format: round trips, any fragmentation, and hostile bytes."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.frames import (
    HEADER,
    MAGIC,
    MAX_PROBE_BYTES,
    Copy,
    Decoder,
    Echo,
    Fault,
    Frame,
    Hello,
    Kind,
    Limits,
    Ping,
    Probe,
    Remove,
    RowType,
    encode_echo,
    encode_fault,
    encode_frame,
    encode_hello,
    encode_ping,
    encode_probe,
)
from agent.engine.rows import pack, unpack
from agent.errors import PeerError

LIMITS = Limits(n_embd=96, max_rows=16, n_seq=4)

ends = st.integers(-1, 2**31 - 1)
sequences = st.integers(0, 3)
operations = st.one_of(
    st.builds(Remove, sequences, ends, ends), st.builds(Copy, sequences, sequences, ends, ends)
)


@st.composite
def made_frames(draw: st.DrawFn) -> Frame:
    count = draw(st.integers(0, 16))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    scale = 10.0 ** draw(st.integers(-6, 6))
    rows = (random.standard_normal((count, 96)) * scale).astype(np.float32)
    pairs = np.stack([random.integers(0, 4, count), random.integers(0, 2**31, count)], axis=1)
    return Frame(
        draw(st.integers(0, 2**64 - 1)),
        tuple(draw(st.lists(operations, max_size=5))),
        pairs.astype(np.int32),
        rows,
    )


def encoded(frame: Frame, row_type: RowType = RowType.F32) -> bytes:
    return b"".join(bytes(piece) for piece in encode_frame(pack(frame, row_type)))


def decoded(data: bytes) -> list:
    return Decoder(LIMITS, "stage 1").feed(data)


@settings(max_examples=60, deadline=None)
@given(made_frames(), st.sampled_from(RowType))
def test_a_frame_comes_back_as_it_was_sent(frame: Frame, row_type: RowType) -> None:
    (message,) = decoded(encoded(frame, row_type))
    largest = np.abs(frame.rows).max(initial=0.0)
    if not len(frame.pairs) or (row_type is RowType.F16 and largest > 65504):
        row_type = RowType.F32
    assert message.row_type is row_type
    found = unpack(message, 96)
    assert (found.epoch, found.operations) == (frame.epoch, frame.operations)
    assert np.array_equal(found.pairs, frame.pairs)
    assert found.rows.shape == frame.rows.shape
    assert found.rows.dtype == np.float32 and found.row_type is RowType.F32
    match row_type:
        case RowType.F32:
            assert np.array_equal(found.rows, frame.rows)
        case RowType.F16:
            assert np.array_equal(found.rows, frame.rows.astype(np.float16))
        case RowType.Q8:
            for at in range(0, 96, 32):
                block = frame.rows[:, at : at + 32]
                off = np.abs(found.rows[:, at : at + 32] - block)
                # Half a step, and the scale's own error, which f16 has (below its range: all).
                scale = np.abs(block).max(axis=1)[:, None] / 127
                assert (off <= scale * (0.501 + 127 * 2**-11) + 127 * 2**-24).all()


def test_f32_rows_are_read_where_the_socket_wrote_them() -> None:
    frame = Frame(1, (), np.array([[0, 5]], np.int32), np.ones((1, 96), np.float32))
    decoder = Decoder(LIMITS, "stage 1")
    data = encoded(frame)
    decoder.space()[:] = data[: HEADER.size]
    decoder.advance(HEADER.size)
    body = decoder.space()
    body[:] = data[HEADER.size :]
    rows = unpack(decoder.advance(len(body)), 96).rows
    assert np.shares_memory(rows, np.frombuffer(body, np.uint8))
    assert np.shares_memory(frame.rows, np.frombuffer(encode_frame(frame)[1], np.uint8))


def test_what_a_type_cannot_hold_goes_in_one_that_can() -> None:
    pairs = np.zeros((1, 2), np.int32)
    rows = np.zeros((1, 96), np.float32)
    rows[0, 5] = -70_000.0
    assert pack(Frame(1, (), pairs, rows), RowType.F16).row_type is RowType.F32
    assert pack(Frame(1, (), pairs, rows), RowType.Q8).row_type is RowType.Q8
    rows[0, 5] = 1e7
    assert pack(Frame(1, (), pairs, rows), RowType.Q8).row_type is RowType.F32
    # Q8_0 has blocks of 32 values.
    odd = Frame(1, (), pairs, np.ones((1, 80), np.float32))
    assert pack(odd, RowType.Q8).row_type is RowType.F16
    with pytest.raises(PeerError, match="q8 rows of 80 values"):
        Decoder(Limits(80, 16, 4), "stage 1").feed(_header(Kind.FRAME, 2, 0, 1, 8 + 2 * 34))


@settings(max_examples=20, deadline=None)
@given(st.lists(made_frames(), max_size=3), st.randoms(use_true_random=False))
def test_messages_survive_any_fragmentation(sent: list[Frame], random) -> None:
    data = b"".join(encoded(frame) + encode_ping(Ping(frame.epoch)) for frame in sent)
    decoder = Decoder(LIMITS, "stage 1")
    found = []
    while data:
        size = random.randint(1, 700)
        found += decoder.feed(data[:size])
        data = data[size:]
    assert decoder.between
    assert [type(message) for message in found] == [Frame, Ping] * len(sent)
    for frame, message in zip(sent, found[::2], strict=True):
        assert np.array_equal(unpack(message, 96).rows, frame.rows)


def test_hello_fault_probe_and_echo_come_back() -> None:
    hello = Hello(b"r" * 16, 7, 2, 9, 96, bytes(range(32)))
    fault = Fault(7, 2, "stage 2 (fd00::2) was lost")
    assert decoded(encode_hello(hello) + encode_fault(fault)) == [hello, fault]
    probe = b"".join(encode_probe(Probe(7), 1000))
    assert len(probe) == HEADER.size + 1000
    assert decoded(probe + encode_echo(Echo(7))) == [Probe(7), Echo(7)]
    (long,) = decoded(encode_fault(Fault(1, 1, "ü\n" * 400)))
    assert long.reason.startswith("ü ü ü")
    assert "\n" not in long.reason


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_raises_a_peer_error_or_waits_for_more(data: bytes) -> None:
    decoder = Decoder(LIMITS, "stage 1")
    try:
        found = decoder.feed(data)
    except PeerError as error:
        assert error.message.startswith("stage 1 sent what no stage sends")
    else:
        assert found == [] and len(data) < HEADER.size


@settings(max_examples=80, deadline=None)
@given(made_frames(), st.integers(0, 200), st.integers(0, 255))
def test_a_flipped_byte_gives_a_sane_message_or_a_peer_error(
    frame: Frame, at: int, value: int
) -> None:
    data = bytearray(encoded(frame))
    data[at % len(data)] = value
    try:
        found = decoded(bytes(data))
    except PeerError:
        return
    for message in found:
        if isinstance(message, Frame):
            with suppress(ValueError):
                rows = unpack(message, 96).rows
                assert rows.shape == (len(message.pairs), 96)
                assert np.isfinite(rows).all()
            assert (message.pairs >= 0).all() and (message.pairs[:, 0] < 4).all()


@pytest.mark.parametrize(
    ("row_type", "bad"),
    [
        *((RowType.F32, np.float32(bad).tobytes()) for bad in ("nan", "inf")),
        *((row_type, np.float16(bad).tobytes())
          for row_type in (RowType.F16, RowType.Q8) for bad in ("nan", "inf")),
    ],
)  # fmt: skip
def test_rows_that_are_not_finite_are_refused_without_a_warning(
    row_type: RowType, bad: bytes
) -> None:
    """One of either sign: their sum is a warning to numpy, and a warning is an error here."""
    frame = Frame(1, (), np.array([[0, 0], [1, 0]], np.int32), np.ones((2, 96), np.float32))
    data = bytearray(encoded(frame, row_type))
    rows_at = HEADER.size + 16
    for at, last in ((rows_at, bad[-1]), ((rows_at + len(data)) // 2, bad[-1] ^ 0x80)):
        data[at : at + len(bad)] = bad[:-1] + bytes([last])
    (message,) = decoded(bytes(data))
    with pytest.raises(ValueError, match="not finite"):
        unpack(message, 96)
    # The largest values whose sum is not finite are fine.
    large = Frame(1, (), frame.pairs, np.full((2, 96), 3e38, np.float32))
    assert np.array_equal(unpack(large, 96).rows, large.rows)


def _header(kind: int, row_type: int, operations: int, rows: int, body: int) -> bytes:
    return HEADER.pack(MAGIC, kind, row_type, operations, rows, body, 1)


@pytest.mark.parametrize(
    "data",
    [
        _header(Kind.FRAME, 0, 0, 17, 17 * (8 + 384)),  # more rows than a batch
        _header(Kind.FRAME, 0, 0, 2**32 - 1, 2**32 - 1),  # 4 GB
        _header(Kind.FRAME, 0, 65535, 0, 65535 * 20),
        _header(Kind.FRAME, 0, 0, 1, 8 + 383),  # a body that does not fit its counts
        _header(Kind.FRAME, 9, 0, 0, 0),
        _header(99, 0, 0, 0, 0),
        _header(Kind.HELLO, 0, 0, 0, 10_000),
        _header(Kind.PING, 0, 0, 0, 1),
        _header(Kind.ECHO, 0, 0, 0, 1),
        _header(Kind.PROBE, 0, 0, 0, MAX_PROBE_BYTES + 1),
        _header(Kind.FAULT, 0, 0, 0, 1 << 30),
    ],
)
def test_hostile_lengths_are_refused_before_anything_is_allocated(data: bytes) -> None:
    with pytest.raises(PeerError, match="no stage sends"):
        decoded(data)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(1, (Remove(4),), np.zeros((0, 2), np.int32), np.zeros((0, 96), np.float32)),
        Frame(1, (Copy(0, 9),), np.zeros((0, 2), np.int32), np.zeros((0, 96), np.float32)),
        Frame(1, (Remove(0, -2),), np.zeros((0, 2), np.int32), np.zeros((0, 96), np.float32)),
        Frame(1, (), np.array([[4, 0]], np.int32), np.zeros((1, 96), np.float32)),
        Frame(1, (), np.array([[0, -1]], np.int32), np.zeros((1, 96), np.float32)),
    ],
)
def test_what_would_abort_llama_cpp_is_refused(frame: Frame) -> None:
    with pytest.raises(PeerError):
        decoded(encoded(frame))
