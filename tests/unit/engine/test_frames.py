"""The wire format: round trips, any fragmentation, and hostile bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.frames import (
    HEADER,
    MAGIC,
    Copy,
    Decoder,
    Fault,
    Frame,
    Hello,
    Kind,
    Limits,
    Ping,
    Remove,
    RowType,
    encode_fault,
    encode_frame,
    encode_hello,
    encode_ping,
)
from agent.errors import PeerError

LIMITS = Limits(n_embd=80, max_rows=16, n_seq=4)

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
    rows = (random.standard_normal((count, 80)) * scale).astype(np.float32)
    pairs = np.stack([random.integers(0, 4, count), random.integers(0, 2**31, count)], axis=1)
    return Frame(
        draw(st.integers(0, 2**64 - 1)),
        tuple(draw(st.lists(operations, max_size=5))),
        pairs.astype(np.int32),
        rows,
    )


def encoded(frame: Frame, row_type: RowType = RowType.F32) -> bytes:
    return b"".join(bytes(piece) for piece in encode_frame(frame, row_type))


def decoded(data: bytes) -> list:
    return Decoder(LIMITS, "stage 1").feed(data)


@settings(max_examples=40, deadline=None)
@given(made_frames(), st.sampled_from(RowType))
def test_a_frame_comes_back_as_it_was_sent(frame: Frame, row_type: RowType) -> None:
    (found,) = decoded(encoded(frame, row_type))
    assert (found.epoch, found.operations) == (frame.epoch, frame.operations)
    assert np.array_equal(found.pairs, frame.pairs)
    assert found.rows.shape == frame.rows.shape
    match row_type:
        case RowType.F32:
            assert np.array_equal(found.rows, frame.rows)
        case RowType.F16:
            expected = np.clip(frame.rows, -65504, 65504).astype(np.float16)
            assert np.array_equal(found.rows, expected)
        case RowType.Q8:
            for at in range(0, 80, 32):
                block = frame.rows[:, at : at + 32]
                off = np.abs(found.rows[:, at : at + 32] - block)
                limit = np.abs(block).max(axis=1, initial=0.0)[:, None] / 127 * 0.501
                assert (off <= limit).all()


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
        assert np.array_equal(message.rows, frame.rows)


def test_hello_and_fault_come_back() -> None:
    hello = Hello(b"r" * 16, 7, 2, 9, 80, RowType.Q8, bytes(range(32)))
    fault = Fault(7, 2, "stage 2 (fd00::2) was lost")
    assert decoded(encode_hello(hello) + encode_fault(fault)) == [hello, fault]
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
            assert message.rows.shape == (len(message.pairs), 80)
            assert np.isfinite(message.rows).all()
            assert (message.pairs >= 0).all() and (message.pairs[:, 0] < 4).all()


@pytest.mark.parametrize(
    ("row_type", "bad"),
    [
        *((row_type, np.float32("nan").tobytes()) for row_type in (RowType.F32, RowType.Q8)),
        *((row_type, np.float32("inf").tobytes()) for row_type in (RowType.F32, RowType.Q8)),
        (RowType.F16, np.float16("inf").tobytes()),
        (RowType.Q8, np.float32(3e38).tobytes()),  # a finite scale; what it scales is not
    ],
)
def test_rows_that_are_not_finite_are_the_peers_fault_and_no_warning(
    row_type: RowType, bad: bytes
) -> None:
    """One of either sign: their sum is a warning to numpy, and a warning is an error here."""
    frame = Frame(1, (), np.array([[0, 0], [1, 0]], np.int32), np.ones((2, 80), np.float32))
    data = bytearray(encoded(frame, row_type))
    rows_at = HEADER.size + 16
    for at, last in ((rows_at, bad[-1]), ((rows_at + len(data)) // 2, bad[-1] ^ 0x80)):
        data[at : at + len(bad)] = bad[:-1] + bytes([last])
    with pytest.raises(PeerError, match="not finite"):
        decoded(bytes(data))


def _header(kind: int, row_type: int, operations: int, rows: int, body: int) -> bytes:
    return HEADER.pack(MAGIC, kind, row_type, operations, rows, body, 1)


@pytest.mark.parametrize(
    "data",
    [
        _header(Kind.FRAME, 0, 0, 17, 17 * (8 + 320)),  # more rows than a batch
        _header(Kind.FRAME, 0, 0, 2**32 - 1, 2**32 - 1),  # 4 GB
        _header(Kind.FRAME, 0, 65535, 0, 65535 * 20),
        _header(Kind.FRAME, 0, 0, 1, 8 + 319),  # a body that does not fit its counts
        _header(Kind.FRAME, 9, 0, 0, 0),
        _header(99, 0, 0, 0, 0),
        _header(Kind.HELLO, 0, 0, 0, 10_000),
        _header(Kind.PING, 0, 0, 0, 1),
        _header(Kind.FAULT, 0, 0, 0, 1 << 30),
    ],
)
def test_hostile_lengths_are_refused_before_anything_is_allocated(data: bytes) -> None:
    with pytest.raises(PeerError, match="no stage sends"):
        decoded(data)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(1, (Remove(4),), np.zeros((0, 2), np.int32), np.zeros((0, 80), np.float32)),
        Frame(1, (Copy(0, 9),), np.zeros((0, 2), np.int32), np.zeros((0, 80), np.float32)),
        Frame(1, (Remove(0, -2),), np.zeros((0, 2), np.int32), np.zeros((0, 80), np.float32)),
        Frame(1, (), np.array([[4, 0]], np.int32), np.zeros((1, 80), np.float32)),
        Frame(1, (), np.array([[0, -1]], np.int32), np.zeros((1, 80), np.float32)),
        Frame(1, (), np.array([[0, 0]], np.int32), np.full((1, 80), np.nan, np.float32)),
        Frame(1, (), np.array([[0, 0]], np.int32), np.full((1, 80), np.inf, np.float32)),
    ],
)
def test_what_would_abort_or_poison_llama_cpp_is_refused(frame: Frame) -> None:
    with pytest.raises(PeerError):
        decoded(encoded(frame))
