"""IPv4 and UDP headers as a raw socket needs them: written, summed, read. A core."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import NamedTuple

UDP = struct.Struct("!HHHH")
"""Source port, destination port, length with this header, checksum."""
_UDP_NUMBER = 17
_PSEUDO = struct.Struct("!4s4sBBH")
_IPV4_BYTES_MIN = 20


class Datagram(NamedTuple):
    """A UDP datagram out of an IPv4 packet."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    payload: bytes


def udp_header(
    source: bytes, destination: bytes, source_port: int, destination_port: int, payload: bytes
) -> bytes:
    """Return the UDP header of a datagram over IPv4, with its checksum; addresses as 4 bytes."""
    length = UDP.size + len(payload)
    header = UDP.pack(source_port, destination_port, length, 0)
    pseudo = _PSEUDO.pack(source, destination, 0, _UDP_NUMBER, length)
    return UDP.pack(source_port, destination_port, length, checksum(pseudo + header + payload))


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of data that is not all zeros, as UDP sends it.

    The sum of 16-bit words with the carry brought round is the remainder by 65535, as 65536 leaves
    1. UDP sends 0 as 65535 (RFC 768): 0 would mean that there is none, which NATs to IPv6 drop.
    """
    if len(data) % 2:
        data += b"\0"
    return 0xFFFF - int.from_bytes(data, "big") % 0xFFFF


def read_ipv4(packet: bytes | memoryview) -> Datagram | None:
    """Return the datagram in an IPv4 packet; None for a fragment, or where lengths do not fit.

    The checksum is not looked at: what comes from this machine or another guest of its host still
    has none (the network card would have filled it in), and the payload is sealed anyway.
    """
    if len(packet) < _IPV4_BYTES_MIN or packet[0] >> 4 != 4:
        return None
    begin = (packet[0] & 15) * 4
    total = int.from_bytes(packet[2:4], "big")
    fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
    if begin < _IPV4_BYTES_MIN or packet[9] != _UDP_NUMBER or total != len(packet) or fragment:
        return None
    if total < begin + UDP.size:
        return None
    source_port, destination_port, length, _ = UDP.unpack_from(packet, begin)
    if length != total - begin:
        return None
    return Datagram(
        str(IPv4Address(bytes(packet[12:16]))),
        source_port,
        str(IPv4Address(bytes(packet[16:20]))),
        destination_port,
        bytes(packet[begin + UDP.size :]),
    )
