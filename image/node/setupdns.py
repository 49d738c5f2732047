"""What a machine that is not set up yet says of itself by multicast DNS. A core.

RFC 6762 and 6763, service type `_covey-setup._udp`: any browser of services (avahi-browse, dns-sd)
shows the machine, and in its TXT record the state and, line by line, what is wrong. An answer holds
all of it: PTR, SRV, TXT, and the address on that link.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from agent.lan.dns import LEGACY_TTL_S, PACKET_MAX_BYTES, TTL_S, UnreadableError, read_name

_SERVICE = (b"_covey-setup", b"_udp", b"local")
# What browsers ask for to learn which services there are (RFC 6763 §9).
_ALL_SERVICES = (b"_services", b"_dns-sd", b"_udp", b"local")
_HEADER = struct.Struct("!6H")
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_RESPONSE, _AUTHORITATIVE, _OPCODE_AND_CODE = 0x8000, 0x0400, 0x780F
_A, _PTR, _TXT, _SRV, _ANY = 1, 12, 16, 33, 255
_IN, _TOP_BIT = 1, 0x8000
_QUESTIONS_MAX = 32
_LABEL_BYTES, _STRING_BYTES = 63, 255
# So that all records of an answer fit one Ethernet frame, whatever the name.
_TEXTS_BYTES = 900


@dataclass(frozen=True)
class Setup:
    """A machine's host name, its state in a word or two, and what is wrong, a line each."""

    name: str
    state: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A question that `answer` is for; `unicast`: whoever asks wants the answer sent there."""

    ident: int
    unicast: bool
    question: bytes


def read(packet: bytes, setup: Setup) -> Asked | None:
    """Return the first question of a packet that is about this machine; never raises."""
    if not _HEADER.size <= len(packet) <= PACKET_MAX_BYTES:
        return None
    ident, flags, questions, *_ = _HEADER.unpack_from(packet)
    if flags & (_RESPONSE | _OPCODE_AND_CODE):
        return None
    host = _label(setup.name).lower()
    about = {
        _ALL_SERVICES: (_PTR, _ANY), _SERVICE: (_PTR, _ANY), (host, b"local"): (_A, _ANY),
        (host, *_SERVICE): (_SRV, _TXT, _ANY),
    }  # fmt: skip
    at = _HEADER.size
    try:
        for _ in range(min(questions, _QUESTIONS_MAX)):
            labels, at = read_name(packet, at)
            kind, network = _QUESTION.unpack_from(packet, at)
            at += _QUESTION.size
            if kind in about.get(labels, ()) and network & ~_TOP_BIT in (_IN, _ANY):
                question = _name(labels) + _QUESTION.pack(kind, _IN)
                return Asked(ident, bool(network & _TOP_BIT), question)
    except (UnreadableError, struct.error):
        pass
    return None


def answer(
    setup: Setup, address: IPv4Address, *, ttl_s: int = TTL_S, to: Asked | None = None
) -> bytes:
    """Return the packet that says all; `address` is this machine's on the link.

    `to` is a question of a resolver that is no mDNS one (RFC 6762 §6.7); `ttl_s` 0 says goodbye.
    """
    flush = 0 if to else _TOP_BIT
    ttl_s = min(ttl_s, LEGACY_TTL_S) if to else ttl_s
    host = (_label(setup.name), b"local")
    instance = (_label(setup.name), *_SERVICE)
    service = _name(_SERVICE)
    records = (
        (_ALL_SERVICES, _PTR, 0, service),
        (_SERVICE, _PTR, 0, _name(instance)),
        # Priority, weight and port 0: there is nothing to connect to.
        (instance, _SRV, flush, bytes(6) + _name(host)),
        (instance, _TXT, flush, _texts(setup)),
        (host, _A, flush, address.packed),
    )
    out = bytearray(
        _HEADER.pack(
            to.ident if to else 0, _RESPONSE | _AUTHORITATIVE, 1 if to else 0, len(records), 0, 0
        )
    )
    out += to.question if to else b""
    for name, kind, top, data in records:
        out += _name(name) + _RECORD.pack(kind, _IN | top, ttl_s, len(data)) + data
    return bytes(out)


def _texts(setup: Setup) -> bytes:
    """Return the TXT data: state=…, then 1=…, 2=… for the lines, as many as fit."""
    out = bytearray(_string(f"state={setup.state}"))
    for number, line in enumerate(setup.lines, start=1):
        string = _string(f"{number}={line}")
        if len(out) + len(string) > _TEXTS_BYTES:
            break
        out += string
    return bytes(out)


def _string(text: str) -> bytes:
    raw = _cut(text, _STRING_BYTES)
    return bytes([len(raw)]) + raw


def _label(text: str) -> bytes:
    return _cut(text, _LABEL_BYTES)


def _cut(text: str, most: int) -> bytes:
    """Return a text's bytes, at most so many and no half of a character."""
    return text.encode()[:most].decode(errors="ignore").encode()


def _name(labels: Sequence[bytes]) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
