"""Segments to members without a path are answered as RFC 6069 wants it; nothing else is."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.probing import noroute
from agent.probing.header import checksum

ACK, SYN, RST, FIN, PSH = 0x10, 0x02, 0x04, 0x01, 0x08


def segment(flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", 40000, 7100, 77, 88, 0x50, flags, 1024, 0, 0)


def packet(version: int, content: bytes, protocol: int = 6, options: int = 0) -> bytes:
    if version == 6:
        source, target = (IPv6Address(f"fd00::{n}").packed for n in (1, 2))
        return struct.pack("!IHBB", 6 << 28, len(content), protocol, 64) + source + target + content
    source, target = (IPv4Address(f"100.64.0.{n}").packed for n in (1, 2))
    head = struct.pack(
        "!BBHHHBBH", 0x45 + options, 0, 20 + 4 * options + len(content), 1, 0, 64, protocol, 0
    )
    return head + source + target + bytes(4 * options) + content


@pytest.mark.parametrize(("version", "options"), [(6, 0), (4, 0), (4, 10)])
@pytest.mark.parametrize("flags", [ACK, ACK | PSH, ACK | FIN])
def test_a_segment_of_a_connection_is_answered_to_its_sender(
    version: int, options: int, flags: int
) -> None:
    head = packet(version, segment(flags), options=options)[: noroute.HEAD_BYTES]
    said = noroute.answer(head)
    assert said is not None
    assert said.to == ip_address("fd00::1" if version == 6 else "100.64.0.1")
    assert said.message[:2] == (b"\x01\x00" if version == 6 else b"\x03\x01")
    assert said.message[8:] == head
    if version == 4:
        assert checksum(said.message) == 0xFFFF, "the sum of a summed message"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flags", [SYN, SYN | ACK, RST, RST | ACK, 0])
def test_a_connection_that_does_not_stand_is_left_alone(version: int, flags: int) -> None:
    assert noroute.answer(packet(version, segment(flags))) is None


@pytest.mark.parametrize("version", [4, 6])
def test_other_protocols_and_short_packets_are_left_alone(version: int) -> None:
    whole = packet(version, segment(ACK))
    assert noroute.answer(packet(version, segment(ACK), protocol=17)) is None
    assert all(noroute.answer(whole[:size]) is None for size in range(len(whole)))


@given(st.binary(max_size=100))
def test_noise_harms_nobody(noise: bytes) -> None:
    noroute.answer(noise)


def test_no_more_are_answered_than_streams_need(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[bytes, object]] = []

    class Fake:
        def sendto(self, message: bytes, address: object) -> None:
            sent.append((message, address))

    said = noroute.NoRoute()
    monkeypatch.setattr(said, "_socket", lambda version: Fake())
    for _ in range(1000):
        said.say(packet(6, segment(ACK)), 5.0)
    assert len(sent) == noroute.ANSWERS_BURST
    assert sent[0][1] == ("fd00::1", 0)
    said.say(packet(6, segment(ACK)), 6.0)
    assert len(sent) == noroute.ANSWERS_BURST + 1
