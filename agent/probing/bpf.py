"""The filter in the kernel that lets only our datagrams through to our sockets. A core.

Classic BPF, as SO_ATTACH_FILTER takes it. Where a packet begins differs: an IPv4 raw socket gets
it from its IP header on, an IPv6 raw socket and a UDP socket from its UDP header on. A load past
the packet's end ends the program with 0, so short packets are dropped.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from agent.probing.port import DATAGRAM_MAX, MAGIC


class Instruction(NamedTuple):
    """`struct sock_filter`: operation, jumps if true and if false, operand."""

    code: int
    true: int
    false: int
    k: int


# linux/bpf_common.h and linux/filter.h.
LOAD_LENGTH = 0x80
LOAD_WORD, LOAD_HALF, LOAD_BYTE = 0x20, 0x28, 0x30
LOAD_WORD_AT_X, LOAD_HALF_AT_X = 0x40, 0x48
LOAD_X_IP_HEADER_BYTES = 0xB1
JUMP_EQUAL, JUMP_GREATER, JUMP_ANY_BIT, JUMP_ALWAYS = 0x15, 0x25, 0x45, 0x05
RETURN = 0x06
PACKET_TYPE = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
_PACKET_HOST, _PACKET_OUTGOING = 0, 4
_WHOLE = 0xFFFFFFFF
_UDP_BYTES = 8
_IPV4_BYTES_MAX = 60
# More-fragments and the offset; the kernel puts fragments together and clears both.
_FRAGMENT_BITS = 0x3FFF
# The first byte of an IPv6 packet; where the last four bytes of a destination stand.
_IPV6_FIRST = 0x60
_IPV6_TAIL, _IPV4_TAIL = 36, 16
_IPV6_PROTOCOL, _IPV4_PROTOCOL = 6, 9
_TCP = 6
# The kernel takes 4,096 instructions, and a tail needs two for each family.
TAILS_MAX = 1000
_INSTRUCTION = struct.Struct("=HBBI")

NOTHING = (Instruction(RETURN, 0, 0, 0),)
"""Drops everything: while a socket is made ready, nothing shall queue on it."""

# A load, and what must hold for what it loaded.
_Check = tuple[Sequence[tuple[int, int]], int, int, bool]


def from_ip_header(port: int) -> tuple[Instruction, ...]:
    """Return the program for an IPv4 raw socket: unicast, no fragment, to `port`, with MAGIC."""
    return _all_of(
        ([(LOAD_LENGTH, 0)], JUMP_GREATER, DATAGRAM_MAX + _UDP_BYTES + _IPV4_BYTES_MAX, False),
        ([(LOAD_WORD, PACKET_TYPE)], JUMP_EQUAL, _PACKET_HOST, True),
        ([(LOAD_HALF, 6)], JUMP_ANY_BIT, _FRAGMENT_BITS, False),
        ([(LOAD_X_IP_HEADER_BYTES, 0), (LOAD_HALF_AT_X, 2)], JUMP_EQUAL, port, True),
        ([(LOAD_WORD_AT_X, _UDP_BYTES)], JUMP_EQUAL, int.from_bytes(MAGIC, "big"), True),
    )


def from_udp_header(port: int) -> tuple[Instruction, ...]:
    """Return the program for an IPv6 raw socket or a UDP socket: unicast, to `port`, with MAGIC."""
    return _all_of(
        ([(LOAD_LENGTH, 0)], JUMP_GREATER, DATAGRAM_MAX + _UDP_BYTES, False),
        ([(LOAD_WORD, PACKET_TYPE)], JUMP_EQUAL, _PACKET_HOST, True),
        ([(LOAD_HALF, 2)], JUMP_EQUAL, port, True),
        ([(LOAD_WORD, _UDP_BYTES)], JUMP_EQUAL, int.from_bytes(MAGIC, "big"), True),
    )


def packed(program: Sequence[Instruction]) -> bytes:
    """Return the program as the kernel reads it."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _all_of(*checks: _Check) -> tuple[Instruction, ...]:
    """Return a program that keeps what passes every check, whole, and drops the rest."""
    length = sum(len(loads) + 1 for loads, *_ in checks)
    program: list[Instruction] = []
    for loads, jump, k, wanted in checks:
        program += [Instruction(code, 0, 0, operand) for code, operand in loads]
        drop = length - len(program)  # over what is left of the checks, and over the first return
        program.append(Instruction(jump, *((0, drop) if wanted else (drop, 0)), k))
    return (*program, Instruction(RETURN, 0, 0, _WHOLE), Instruction(RETURN, 0, 0, 0))


def outgoing_except(
    tails: Sequence[int], heads: int = DATAGRAM_MAX, only_tcp: Sequence[int] = ()
) -> tuple[Instruction, ...]:
    """Return the program for a packet socket on an interface without link headers (WireGuard's).

    It lets the first bytes of outgoing IP packets through, but for those to an address whose last
    four bytes, as a number, are among `tails`, and but for TCP to those among `only_tcp` (together
    at most TAILS_MAX, the rest is left out).
    """
    last = [
        _to_tails(at, only_tcp[:TAILS_MAX], tails[: max(0, TAILS_MAX - len(only_tcp))], at_protocol,
                  heads)
        for at, at_protocol in ((_IPV6_TAIL, _IPV6_PROTOCOL), (_IPV4_TAIL, _IPV4_PROTOCOL))
    ]  # fmt: skip
    return (
        Instruction(LOAD_WORD, 0, 0, PACKET_TYPE),
        Instruction(JUMP_EQUAL, 1, 0, _PACKET_OUTGOING),
        *NOTHING,
        Instruction(LOAD_BYTE, 0, 0, 0),
        Instruction(JUMP_GREATER, 0, 1, _IPV6_FIRST - 1),
        Instruction(JUMP_ALWAYS, 0, 0, 1),
        Instruction(JUMP_ALWAYS, 0, 0, len(last[0])),
        *last[0],
        *last[1],
    )


def _to_tails(
    at: int, only_tcp: Sequence[int], tails: Sequence[int], at_protocol: int, heads: int
) -> tuple[Instruction, ...]:
    """Return what follows for one family, whose destinations' tails stand at `at`."""
    program = [Instruction(LOAD_WORD, 0, 0, at)]
    for tail in tails:
        program += [Instruction(JUMP_EQUAL, 0, 1, tail), *NOTHING]
    for left, tail in zip(range(len(only_tcp), 0, -1), only_tcp, strict=True):
        # Over the comparisons that follow, and over the end for all others.
        over = 2 * (left - 1) + 1
        program += [Instruction(JUMP_EQUAL, 0, 1, tail), Instruction(JUMP_ALWAYS, 0, 0, over)]
    return (
        *program,
        Instruction(RETURN, 0, 0, heads),
        Instruction(LOAD_BYTE, 0, 0, at_protocol),
        Instruction(JUMP_EQUAL, 1, 0, _TCP),
        *NOTHING,
        Instruction(RETURN, 0, 0, heads),
    )
