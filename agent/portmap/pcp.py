"""PCP on the wire (RFC 6887): MAP and ANNOUNCE, without options. A core.

Used by `service.py`. A mapping belongs to whoever knows its nonce, so ours is derived from a
secret that survives a restart: an agent that crashed takes its mapping over instead of being
refused until the old one expires.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from random import Random

from agent.portmap.words import (
    LOOKING,
    MAPPING,
    Alive,
    Answer,
    Granted,
    Kind,
    Refused,
    Released,
    Request,
    can_be_external,
)

VERSION = 2
NONCE_BYTES = 12
_ANNOUNCE, _MAP, _ANSWER = 0, 1, 128
_UDP = 17
_REQUEST = struct.Struct("!BBHI16s")
_ANSWER_HEAD = struct.Struct("!BBBBII12x")
_MAP_DATA = struct.Struct("!12sB3xHH16s")
_LONGEST = 1100  # section 7
_UNSUPPORTED_OPCODE = 4
# Section 8.1.1: the first wait is 3 s, each next is doubled, all differ by up to a tenth. The RFC
# goes on for ever; we end after four and begin again with the next series of probes.
_FIRST_WAIT_S, _TRIES, _JITTER = 3.0, 4, 0.1

_WHY = {
    1: "it does not speak this version of PCP",
    2: "it does not allow this machine mappings (its setting may be off)",
    3: "it calls our request malformed",
    4: "it has no mappings, only other parts of PCP",
    5: "it does not know an option",
    6: "it calls an option malformed",
    7: "it has no network outside at present",
    8: "it has no room for another mapping",
    9: "it cannot map UDP ports",
    10: "it allows this machine no more mappings",
    11: "it cannot give the external address",
    12: "a NAT stands between this machine and it",
    13: "the mapping has too many remote peers",
}


class Pcp:
    """The dialect for one internal UDP port of ours, `client`, at one gateway."""

    def __init__(self, client: str, internal_port: int, nonce: bytes) -> None:
        self._client = _packed(client)
        self._any = _packed("0.0.0.0" if ip_address(client).version == 4 else "::")  # noqa: S104 - "whichever address", on the wire
        self._port = internal_port
        self._nonce = nonce

    def encode(self, request: Request) -> bytes:
        """Return the datagram that asks this."""
        if request.kind in LOOKING:
            return _REQUEST.pack(VERSION, _ANNOUNCE, 0, 0, self._client)
        lifetime = 0 if request.kind is Kind.RELEASE else request.lifetime_s
        address = _packed(request.external_address) if request.external_address else self._any
        return _REQUEST.pack(VERSION, _MAP, 0, lifetime, self._client) + _MAP_DATA.pack(
            self._nonce, _UDP, self._port, request.external_port, address
        )

    def read(self, data: bytes) -> Answer | None:
        """Return what the gateway answered; None for what is not an answer to us."""
        if len(data) >= 4 and data[0] == 0 and data[1] & _ANSWER:
            return Refused("it speaks NAT-PMP only")
        if not _ANSWER_HEAD.size <= len(data) <= _LONGEST or len(data) % 4:
            return None
        version, operation, _, result, lifetime, epoch = _ANSWER_HEAD.unpack_from(data)
        if version != VERSION:
            return None
        if operation == _ANSWER + _ANNOUNCE:
            if result in {0, _UNSUPPORTED_OPCODE}:  # it speaks PCP, and its clock is told anyway
                return Alive(epoch)
            return Refused(_why(result), LOOKING, epoch, lifetime)
        if operation != _ANSWER + _MAP or len(data) < _ANSWER_HEAD.size + _MAP_DATA.size:
            return None
        return self._map_answer(data, result, lifetime, epoch)

    def _map_answer(self, data: bytes, result: int, lifetime: int, epoch: int) -> Answer | None:
        nonce, protocol, internal, external, packed = _MAP_DATA.unpack_from(data, _ANSWER_HEAD.size)
        if (nonce, protocol, internal) != (self._nonce, _UDP, self._port):
            return None
        if result:
            return Refused(_why(result), MAPPING, epoch, lifetime)
        if lifetime == 0:
            return Released(epoch)
        address = _unpacked(packed)
        if not can_be_external(address):
            return Refused(_WHY[7], MAPPING, epoch)
        return Granted(external, lifetime, epoch, address)


def nonce(secret: bytes, gateway: str, client: str, internal_port: int) -> bytes:
    """Return the nonce of the mapping of this port at this gateway: the same after a restart."""
    about = f"{gateway} {client} {internal_port}".encode()
    return hashlib.blake2b(about, key=secret, digest_size=NONCE_BYTES, person=b"covey pcp").digest()


def is_announcement(data: bytes) -> bool:
    """Say whether this is what a gateway tells all hosts when it starts (section 14.1)."""
    return len(data) == _ANSWER_HEAD.size and data[:2] == bytes([VERSION, _ANSWER + _ANNOUNCE])


def waits(rng: Random) -> Iterator[float]:
    """Yield how long to wait after each try (s); it is given up after the last."""
    wait = 0.0
    for _ in range(_TRIES):
        wait = (2 * wait or _FIRST_WAIT_S) * (1 + rng.uniform(-_JITTER, _JITTER))
        yield wait


def lost_state(previous: int, heard_at: float, epoch: int, now: float) -> bool:
    """Say whether the gateway's clock shows that it began anew (section 8.5)."""
    if epoch < previous - 1:
        return True
    ours, its = now - heard_at, epoch - previous
    return ours + 2 < its - its / 16 or its + 2 < ours - ours / 16


def _why(result: int) -> str:
    return _WHY.get(result, f"it gave the unknown reason {result}")


def _packed(address: str) -> bytes:
    ip = ip_address(address)
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed


def _unpacked(packed: bytes) -> str:
    ip = IPv6Address(packed)
    mapped: IPv4Address | None = ip.ipv4_mapped
    return str(mapped or ip)
