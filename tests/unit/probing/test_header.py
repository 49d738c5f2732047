"""Headers: the checksum against RFC 1071 done word by word, reading against writing and noise."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from agent.probing import header

ADDRESSES = st.binary(min_size=4, max_size=4)
PORTS = st.integers(1, 65535)


def by_the_book(data: bytes) -> int:
    """RFC 1071 as it is written: add words, bring the carry round, take the complement."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | data[at + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source: bytes, destination: bytes, datagram: bytes, options: bytes = b"") -> bytes:
    head = 20 + len(options)
    fields = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | head // 4, 0, head + len(datagram), 0, 0x4000, 64, 17, 0,
        source, destination,
    )  # fmt: skip
    return fields + options + datagram


@given(st.binary(min_size=1, max_size=2000).filter(any))
def test_the_checksum_is_the_books(data: bytes) -> None:
    expected = by_the_book(data)
    assert header.checksum(data) == (expected or 0xFFFF)


def test_a_sum_of_zero_is_sent_as_all_ones() -> None:
    assert by_the_book(b"\xff\xff") == 0
    assert header.checksum(b"\xff\xff") == 0xFFFF


@given(ADDRESSES, ADDRESSES, PORTS, PORTS, st.binary(max_size=1500))
def test_a_receiver_finds_the_checksum_right(
    source: bytes, destination: bytes, source_port: int, port: int, payload: bytes
) -> None:
    head = header.udp_header(source, destination, source_port, port, payload)
    pseudo = source + destination + struct.pack("!HH", 17, 8 + len(payload))
    assert by_the_book(pseudo + head + payload) == 0
    assert head[6:] != b"\0\0"


@given(ADDRESSES, ADDRESSES, PORTS, PORTS, st.binary(max_size=100), st.integers(0, 10))
def test_what_was_written_is_read(
    source: bytes, destination: bytes, source_port: int, port: int, payload: bytes, options: int
) -> None:
    head = header.udp_header(source, destination, source_port, port, payload)
    whole = packet(source, destination, head + payload, bytes(4 * options))
    found = header.read_ipv4(memoryview(whole))
    assert found is not None
    assert found.source == ".".join(map(str, source))
    assert found.destination == ".".join(map(str, destination))
    assert (found.source_port, found.destination_port) == (source_port, port)
    assert found.payload == payload
    assert {header.read_ipv4(whole[:n]) for n in range(len(whole))} == {None}
    assert header.read_ipv4(whole + b"\0") is None


def test_lengths_that_do_not_fit_are_refused() -> None:
    source, destination = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
    for length in (0, 7, 9, 11, 13, 65535):
        datagram = struct.pack("!HHHH", 1, 2, length, 0) + b"four"
        assert header.read_ipv4(packet(source, destination, datagram)) is None
    right = packet(source, destination, struct.pack("!HHHH", 1, 2, 12, 0) + b"four")
    assert header.read_ipv4(right) is not None
    for at, value in ((0, 0x65), (0, 0x44), (0, 0x4F), (6, 0x20), (7, 0x01), (9, 6)):
        wrong = bytearray(right)
        wrong[at] = value
        assert header.read_ipv4(bytes(wrong)) is None, (at, value)


@given(st.binary(max_size=100))
def test_noise_is_refused_or_read(noise: bytes) -> None:
    found = header.read_ipv4(noise)
    assert found is None or len(found.payload) <= len(noise) - 28
