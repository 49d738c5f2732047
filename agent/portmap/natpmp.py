"""NAT-PMP on the wire (RFC 6886): requests of ours, answers of the gateway. A core.

Used by `service.py`. The protocol has no secret: an answer is tied to its request by the socket,
which is connected to the gateway, by the operation and by the internal port.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
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

PORT = 5351  # the gateway's, for PCP too
ANNOUNCE_PORT, ANNOUNCE_GROUP = 5350, "224.0.0.1"  # ours, where gateways announce themselves
VERSION = 0
_OP_ADDRESS, _OP_MAP_UDP, _ANSWER = 0, 1, 128
_ADDRESS_ANSWER = struct.Struct("!BBHI4s")
_MAP_REQUEST = struct.Struct("!BBHHHI")
_MAP_ANSWER = struct.Struct("!BBHIHHI")
_HEAD = struct.Struct("!BBH")
_EPOCH = struct.Struct("!4xI")
# Section 3: the first wait is 250 ms, each next is doubled, the ninth try is the last.
_FIRST_WAIT_S, _TRIES = 0.25, 9
# Section 3.6: our clocks may differ by an eighth and 2 s before a gateway has lost its state.
_CLOCK_SLACK_S = 2.0

NO_ADDRESS = "it has no external address itself at present"
_WHY = {
    1: "it does not speak this version of NAT-PMP",
    2: "it does not allow mappings (its setting may be off)",
    3: NO_ADDRESS,
    4: "it has no room for another mapping",
    5: "it cannot map UDP ports",
}


class NatPmp:
    """The dialect for one internal UDP port."""

    def __init__(self, internal_port: int) -> None:
        self._port = internal_port

    def encode(self, request: Request) -> bytes:
        """Return the datagram that asks this."""
        if request.kind in LOOKING:
            return bytes([VERSION, _OP_ADDRESS])
        # A release names external port 0 (section 3.4); internal port 0 would release them all.
        external = 0 if request.kind is Kind.RELEASE else request.external_port
        lifetime = 0 if request.kind is Kind.RELEASE else request.lifetime_s
        return _MAP_REQUEST.pack(VERSION, _OP_MAP_UDP, 0, self._port, external, lifetime)

    def read(self, data: bytes) -> Answer | None:
        """Return what the gateway answered; None for what is not an answer to us."""
        if len(data) < _HEAD.size:
            return None
        version, operation, result = _HEAD.unpack_from(data)
        if version == 2 and operation & _ANSWER:
            return Refused("it speaks PCP instead")
        if version != VERSION or operation not in {_ANSWER, _ANSWER + _OP_MAP_UDP}:
            return None
        if result:
            return self._refusal(data, operation - _ANSWER, result)
        if operation == _ANSWER:
            return _address(data)
        return self._mapped(data)

    def _mapped(self, data: bytes) -> Answer | None:
        if len(data) != _MAP_ANSWER.size:
            return None
        _, _, _, epoch, internal, external, lifetime = _MAP_ANSWER.unpack(data)
        if internal != self._port:
            return None
        return Granted(external, lifetime, epoch) if lifetime else Released(epoch)

    def _refusal(self, data: bytes, operation: int, result: int) -> Refused | None:
        # A refusal of a mapping is as long as a grant; only one of the version may be shorter.
        if operation == _OP_MAP_UDP and len(data) == _MAP_ANSWER.size:
            if _MAP_ANSWER.unpack(data)[4] != self._port:
                return None
        elif result != 1 and operation == _OP_MAP_UDP:
            return None
        epoch = _EPOCH.unpack_from(data)[0] if len(data) >= _EPOCH.size else None
        kinds = LOOKING if operation == _OP_ADDRESS else MAPPING
        return Refused(_WHY.get(result, f"it gave the unknown reason {result}"), kinds, epoch)


def is_announcement(data: bytes) -> bool:
    """Say whether this is what a gateway tells all hosts: its clock and address (section 3.2.1)."""
    return len(data) == _ADDRESS_ANSWER.size and data[:2] == bytes([VERSION, _ANSWER])


def waits(rng: Random) -> Iterator[float]:
    """Yield how long to wait after each try (s), without chance; it is given up after the last."""
    return (_FIRST_WAIT_S * 2**n for n in range(_TRIES))


def lost_state(previous: int, heard_at: float, epoch: int, now: float) -> bool:
    """Say whether the gateway's clock shows that it began anew (section 3.6)."""
    return epoch < previous + (now - heard_at) * 7 / 8 - _CLOCK_SLACK_S


def _address(data: bytes) -> Answer | None:
    if len(data) != _ADDRESS_ANSWER.size:
        return None
    epoch, packed = _ADDRESS_ANSWER.unpack(data)[3:]
    address = str(IPv4Address(packed))
    if not can_be_external(address):
        return Refused(NO_ADDRESS, LOOKING, epoch)
    return Alive(epoch, address)
