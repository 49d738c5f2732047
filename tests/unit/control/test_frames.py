"""The frames of a control stream: any chunking, every limit, every kind of nonsense."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control import frames
from agent.errors import (
    MAX_TEXT_CHARACTERS,
    CoveyError,
    EnvironmentFault,
    PeerError,
    TicketError,
)

MIB = 1024 * 1024


def payload_of(frame: bytes) -> bytes:
    payload = frames.FrameDecoder().feed(frame)
    assert payload is not None
    return payload


@settings(max_examples=50)
@given(payload=st.binary(max_size=200), cuts=st.lists(st.integers(0, 204), max_size=8))
def test_a_frame_survives_any_cutting(payload: bytes, cuts: list[int]) -> None:
    wire = frames.encode_frame(payload)
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    decoder = frames.FrameDecoder()
    results = [decoder.feed(wire[a:b]) for a, b in itertools.pairwise(edges)]
    assert results[-1] == payload
    assert all(result is None for result in results[:-1])


@settings(max_examples=50)
@given(noise=st.binary(max_size=300))
def test_noise_is_a_frame_or_waits_or_is_refused(noise: bytes) -> None:
    decoder = frames.FrameDecoder(limit=100)
    try:
        payload = decoder.feed(noise)
    except frames.FrameError:
        return
    if payload is None:
        assert 0 < decoder.wanted <= 104
    else:
        assert noise == frames.encode_frame(payload)


def test_wanted_counts_down() -> None:
    decoder = frames.FrameDecoder()
    assert decoder.wanted == 4
    assert decoder.feed(b"\0\0") is None
    assert decoder.wanted == 2
    assert decoder.feed(b"\0\3a") is None
    assert decoder.wanted == 2
    assert decoder.feed(b"bc") == b"abc"


@pytest.mark.parametrize("length", [101, 2**31, 2**32 - 1])
def test_a_length_over_the_limit_is_refused_before_the_body(length: int) -> None:
    decoder = frames.FrameDecoder(limit=100)
    with pytest.raises(frames.FrameError, match=f"a frame of {length} bytes, and the limit is 100"):
        decoder.feed(length.to_bytes(4, "big") + b"body")


def test_bytes_after_the_frame_are_refused() -> None:
    with pytest.raises(frames.FrameError, match="2 bytes after the frame"):
        frames.FrameDecoder().feed(frames.encode_frame(b"abc") + b"de")


def test_four_mebibytes_fit_and_no_byte_more() -> None:
    answer = bytes(4 * MIB)
    assert frames.decode_reply(payload_of(frames.encode_reply(answer))) == answer
    with pytest.raises(ValueError, match="at most"):
        frames.encode_reply(answer + b"x")


def test_an_answer_crosses_even_if_empty() -> None:
    assert frames.decode_reply(payload_of(frames.encode_reply(b""))) == b""


def test_an_error_crosses_with_its_class_message_and_hint() -> None:
    wire = frames.encode_refusal(TicketError("this ticket expired", hint="Ask for another."))
    with pytest.raises(TicketError) as caught:
        frames.decode_reply(payload_of(wire))
    assert caught.value.message == "this ticket expired"
    assert caught.value.hint == "Ask for another."


def test_an_unknown_class_of_error_is_a_peer_error() -> None:
    body = msgspec.msgpack.encode({"kind": "SystemExit", "message": "bye", "hint": ""})
    with pytest.raises(PeerError, match="bye"):
        frames.decode_reply(b"\1" + body)


def test_what_a_peer_writes_cannot_drive_the_terminal() -> None:
    body = msgspec.msgpack.encode(
        {"kind": "EnvironmentFault", "message": "\x1b[2Jred\r\nline two\0", "hint": "x" * 9999}
    )
    with pytest.raises(EnvironmentFault) as caught:
        frames.decode_reply(b"\1" + body)
    assert caught.value.message == "[2Jred line two"
    assert len(caught.value.hint) == MAX_TEXT_CHARACTERS


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\2",
        b"\xffabc",
        b"\1",
        b"\1not msgpack",
        b"\1" + msgspec.msgpack.encode({"kind": "PeerError"}),
        b"\1" + msgspec.msgpack.encode({"kind": "PeerError", "message": "m", "more": 1}),
        b"\1" + msgspec.msgpack.encode({"kind": 1, "message": "m"}),
    ],
)
def test_nonsense_is_a_frame_error(reply: bytes) -> None:
    with pytest.raises(frames.FrameError):
        frames.decode_reply(reply)


def test_a_long_message_is_cut_when_sent() -> None:
    with pytest.raises(CoveyError) as caught:
        frames.decode_reply(payload_of(frames.encode_refusal(PeerError("a" * 5000))))
    assert len(caught.value.message) == MAX_TEXT_CHARACTERS
    assert caught.value.message.endswith("…")
