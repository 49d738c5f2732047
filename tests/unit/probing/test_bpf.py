"""The filter, run by an interpreter of our own; `test_rawport.py` has the kernel run it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.probing import bpf
from agent.probing.port import DATAGRAM_MAX, MAGIC

PORT = 51820


class Bad(Exception):
    """The kernel would refuse the program."""


def run(program: Sequence[bpf.Instruction], packet: bytes, packet_type: int = 0) -> int:
    """Return how many bytes the filter keeps, as the kernel's interpreter does."""

    def load(at: int, size: int) -> int:
        if at == bpf.PACKET_TYPE:
            return packet_type
        if at + size > len(packet):
            raise IndexError
        return int.from_bytes(packet[at : at + size], "big")

    a = x = at = 0
    try:
        for _ in range(len(program)):
            code, true, false, k = program[at]
            at += 1
            match code:
                case bpf.LOAD_LENGTH:
                    a = len(packet)
                case bpf.LOAD_WORD:
                    a = load(k, 4)
                case bpf.LOAD_HALF:
                    a = load(k, 2)
                case bpf.LOAD_WORD_AT_X:
                    a = load(x + k, 4)
                case bpf.LOAD_HALF_AT_X:
                    a = load(x + k, 2)
                case bpf.LOAD_X_IP_HEADER_BYTES:
                    x = (load(k, 1) & 15) * 4
                case bpf.JUMP_EQUAL:
                    at += true if a == k else false
                case bpf.JUMP_ALWAYS:
                    at += k
                case bpf.LOAD_BYTE:
                    a = load(k, 1)
                case bpf.JUMP_GREATER:
                    at += true if a > k else false
                case bpf.JUMP_ANY_BIT:
                    at += true if a & k else false
                case bpf.RETURN:
                    return min(k, len(packet))
                case _:
                    raise Bad(code)
    except IndexError:
        return 0
    raise Bad("no end")


def udp(payload: bytes, port: int = PORT) -> bytes:
    return struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload


def ipv4(content: bytes, *, options: int = 0, fragment: int = 0x4000) -> bytes:
    head = 20 + 4 * options
    fields = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | head // 4, 0, head + len(content), 7, fragment, 64, 17, 0,
        bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]),
    )  # fmt: skip
    return fields + bytes(4 * options) + content


@given(st.binary(max_size=64), st.integers(0, 10))
def test_ours_passes_whole(rest: bytes, options: int) -> None:
    datagram = udp(MAGIC + rest)
    packet = ipv4(datagram, options=options)
    assert run(bpf.from_udp_header(PORT), datagram) == len(datagram)
    assert run(bpf.from_ip_header(PORT), packet) == len(packet)


@given(st.binary(max_size=80))
def test_anything_else_is_dropped(payload: bytes) -> None:
    if payload.startswith(MAGIC):
        return
    assert run(bpf.from_udp_header(PORT), udp(payload)) == 0
    assert run(bpf.from_ip_header(PORT), ipv4(udp(payload))) == 0


@given(st.binary(max_size=80))
def test_noise_harms_nobody(noise: bytes) -> None:
    for program in (bpf.from_udp_header(PORT), bpf.from_ip_header(PORT)):
        assert run(program, noise) in {0, len(noise)}


@pytest.mark.parametrize("port", [0, 1, PORT - 1, PORT + 1, 65535])
def test_other_ports_are_dropped(port: int) -> None:
    assert run(bpf.from_udp_header(PORT), udp(MAGIC, port)) == 0
    assert run(bpf.from_ip_header(PORT), ipv4(udp(MAGIC, port))) == 0


@pytest.mark.parametrize("packet_type", [1, 2, 3, 4])
def test_what_is_not_for_this_host_alone_is_dropped(packet_type: int) -> None:
    assert run(bpf.from_udp_header(PORT), udp(MAGIC), packet_type) == 0
    assert run(bpf.from_ip_header(PORT), ipv4(udp(MAGIC)), packet_type) == 0


@pytest.mark.parametrize("fragment", [0x2000, 0x0001, 0x1FFF, 0x2005])
def test_fragments_are_dropped(fragment: int) -> None:
    assert run(bpf.from_ip_header(PORT), ipv4(udp(MAGIC), fragment=fragment)) == 0


def test_every_cut_short_packet_is_dropped() -> None:
    datagram, packet = udp(MAGIC), ipv4(udp(MAGIC), options=3)
    assert {run(bpf.from_udp_header(PORT), datagram[:n]) for n in range(len(datagram))} == {0}
    assert {run(bpf.from_ip_header(PORT), packet[:n]) for n in range(len(packet))} == {0}


def test_the_largest_passes_and_one_more_byte_does_not() -> None:
    fits = udp(MAGIC + bytes(DATAGRAM_MAX - len(MAGIC)))
    assert run(bpf.from_udp_header(PORT), fits) == len(fits)
    assert run(bpf.from_udp_header(PORT), fits + b"\0") == 0
    packet = ipv4(fits, options=10)
    assert run(bpf.from_ip_header(PORT), packet) == len(packet)
    assert run(bpf.from_ip_header(PORT), packet + b"\0") == 0


def packet_to(tail: int, *, version: int, protocol: int) -> bytes:
    if version == 6:
        return (
            bytes([0x60, 0, 0, 0, 0, 20, protocol, 64])
            + bytes(28)
            + tail.to_bytes(4, "big")
            + b"x" * 30
        )
    head = bytes([0x45, 0, 0, 50, 0, 0, 0, 0, 64, protocol, 0, 0]) + bytes(4)
    return head + tail.to_bytes(4, "big") + b"x" * 30


@given(
    st.lists(st.integers(1, 2**32 - 1), max_size=12, unique=True),
    st.integers(0, 12), st.integers(0, 2**32 - 1), st.sampled_from([4, 6]),
    st.sampled_from([1, 6, 17]), st.data(),
)  # fmt: skip
def test_what_goes_to_whom_is_heard(
    tails: list[int], split: int, other: int, version: int, protocol: int, data: st.DataObject
) -> None:
    ignored, waiting = tails[:split], tails[split:]
    program = bpf.outgoing_except(ignored, 40, only_tcp=waiting)
    tail = data.draw(st.sampled_from([other, *tails]))
    packet = packet_to(tail, version=version, protocol=protocol)
    heard = tail not in ignored and (tail not in waiting or protocol == 6)
    assert run(program, packet, packet_type=4) == (40 if heard else 0)
    assert run(program, packet, packet_type=0) == 0, "it came in"


def test_more_addresses_than_fit_are_left_out() -> None:
    many = list(range(1, bpf.TAILS_MAX + 100))
    for program in (bpf.outgoing_except(many, 40), bpf.outgoing_except([], 40, only_tcp=many)):
        assert len(program) <= 4096
        assert run(program, packet_to(1, version=6, protocol=17), packet_type=4) == 0
        assert run(program, packet_to(many[-1], version=4, protocol=17), packet_type=4) == 40


def test_nothing_drops_everything() -> None:
    assert run(bpf.NOTHING, udp(MAGIC)) == 0


def test_it_is_packed_as_the_kernel_reads_it() -> None:
    assert bpf.packed([bpf.Instruction(0x15, 1, 2, 0x01020304)]) == struct.pack(
        "=HBBI", 0x15, 1, 2, 0x01020304
    )
