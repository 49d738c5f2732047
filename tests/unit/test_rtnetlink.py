"""Events read as they are; and noise, cut short or lying about its length, ends the reading."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import rtnetlink

BODIES = st.binary(max_size=40)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def message(kind: int, body: bytes) -> bytes:
    return padded(struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body)


def attribute(kind: int, value: bytes) -> bytes:
    return padded(struct.pack("=HH", 4 + len(value), kind) + value)


@given(st.lists(st.tuples(st.integers(0, 65535), BODIES), max_size=5))
def test_every_message_of_a_datagram_is_found(sent: list[tuple[int, bytes]]) -> None:
    datagram = b"".join(message(*one) for one in sent)
    assert list(rtnetlink.messages(datagram)) == sent


@given(st.dictionaries(st.integers(0, 0x3FFF), BODIES, max_size=5))
def test_every_attribute_is_found(sent: dict[int, bytes]) -> None:
    data = b"".join(attribute(kind | 0x8000, value) for kind, value in sent.items())
    assert rtnetlink.attributes(data) == sent


@given(st.binary(max_size=100))
def test_noise_ends_the_reading(noise: bytes) -> None:
    assert sum(16 + len(m.body) for m in rtnetlink.messages(noise)) <= len(noise)
    assert all(len(value) <= len(noise) for value in rtnetlink.attributes(noise).values())


def test_what_lies_about_its_length_is_not_read() -> None:
    right = message(20, b"four")
    for length in (0, 15, 21, 2**32 - 1):
        assert list(rtnetlink.messages(right + struct.pack("=I", length) + right[4:])) == [
            (20, b"four")
        ]


def test_an_event_socket_without_events_has_none() -> None:
    events = rtnetlink.RouteEvents(rtnetlink.IPV4_ROUTES)
    try:
        assert events.read() == []
        assert events.fileno() >= 0
    finally:
        events.close()
        events.close()


def test_an_interface_has_an_alias_or_is_not_there() -> None:
    assert rtnetlink.alias_of("lo") == ""
    assert rtnetlink.alias_of("covey-none") is None
    with pytest.raises(OSError):
        rtnetlink.delete_link("covey-none")
