"""The two multicast DNS messages that Covey speaks: who is there, and here I am. A core.

RFC 6762 and 6763 for one service type, `_covey._udp.local`. An answer always holds all there is to
say: PTR to an instance, its SRV, and its TXT with the sealed announcement. Both names are random,
the SRV's port is 0 and there is no address record, because what matters is sealed.

Why not the zeroconf package (0.150), which libp2p brings along: it keeps what strangers send
(10,000 records of up to 9 kB, and for each socket 8,000 truncated questions), announces after 1.1 s
and answers after up to 1.2 s (measured; ours: some milliseconds), answers questions from outside
the link, and does not tell on which interface or from whom something came. It is the other side in
our tests. Whatever comes is hostile: `read` returns None for what it cannot read, in bounded time.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

GROUP_IPV4 = "224.0.0.251"
GROUP_IPV6 = "ff02::fb"
PORT = 5353
# What an Ethernet frame holds without fragments; ours have under 500 bytes.
PACKET_MAX_BYTES = 1472
# RFC 6762 §6.7: a resolver that is no mDNS one must not keep an answer for longer.
LEGACY_TTL_S = 10
# For caches of other programs (members' own are sealed with a time): two announcements' time.
TTL_S = 120
# Every packet about our service holds this label, even where the rest of the name is compressed:
# a look for it spares the time for all the others on a busy LAN.
MARK = b"\x06_covey"

_SERVICE = (b"_covey", b"_udp", b"local")
_NAME_LABELS_MAX = 16
_NAME_BYTES_MAX = 255
_POINTERS_MAX = 4  # in one name; these three bound the time that a packet takes
_RECORDS_MAX = 32
_TEXTS_MAX = 16
_TEXT_BYTES_MAX = 1024
_TXT_STRING_BYTES_MAX = 255
_HEADER = struct.Struct("!6H")
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_POINTER = 0xC000
_RESPONSE, _AUTHORITATIVE, _OPCODE_AND_CODE = 0x8000, 0x0400, 0x780F
_PTR, _TXT, _SRV, _ANY = 12, 16, 33, 255
_IN, _TOP_BIT = 1, 0x8000  # with a question: answer by unicast; with a record: flush what is cached


@dataclass(frozen=True)
class Names:
    """What an instance and its host are called: a random label each, of 1 to 63 bytes."""

    instance: bytes
    host: bytes


@dataclass(frozen=True)
class Query:
    """Someone asks for our service, or for one instance; `unicast`: wants the answer sent there."""

    ident: int
    kind: int
    unicast: bool
    instance: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """The texts of all instances that a packet holds: sealed announcements, or anything else."""

    texts: tuple[bytes, ...]


class UnreadableError(ValueError):
    """A packet is cut short, or no DNS message."""


def question(ident: int = 0) -> bytes:
    """Return the question who is there; `ident` (16 bits) is 0 in all that leaves from PORT."""
    return _HEADER.pack(ident, 0, 1, 0, 0, 0) + _name(_SERVICE) + _QUESTION.pack(_PTR, _IN)


def answer(names: Names, text: bytes, *, ttl_s: int = TTL_S, to: Query | None = None) -> bytes:
    """Return the packet that says: here I am.

    `to` is the question about the service that it answers directly, if it does (RFC 6762 §6.7: the
    id and the question come back, and nothing is flushed); `ttl_s` 0 says goodbye.
    """
    flush = 0 if to else _TOP_BIT
    service_at = _HEADER.size
    out = bytearray(
        _HEADER.pack(to.ident if to else 0, _RESPONSE | _AUTHORITATIVE, 1 if to else 0, 3, 0, 0)
    )
    out += _name(_SERVICE)
    local_at = len(out) - len(_name(_SERVICE[-1:]))
    if to:
        out += _QUESTION.pack(to.kind, _IN) + _pointer(service_at)
        ttl_s = min(ttl_s, LEGACY_TTL_S)
    instance = _label(names.instance) + _pointer(service_at)
    out += _RECORD.pack(_PTR, _IN, ttl_s, len(instance))
    instance_at = len(out)
    out += instance
    host = _label(names.host) + _pointer(local_at)
    out += _pointer(instance_at) + _RECORD.pack(_SRV, _IN | flush, ttl_s, 6 + len(host))
    out += bytes(6) + host  # priority, weight and port 0
    strings = _strings(text)
    out += _pointer(instance_at) + _RECORD.pack(_TXT, _IN | flush, ttl_s, len(strings)) + strings
    return bytes(out)


def read(packet: bytes) -> Query | Answer | None:
    """Return the question for our service, or the texts of instances of it; None: of no concern.

    Goodbyes are read like the rest: what counts is in the seal. Never raises.
    """
    if not _HEADER.size <= len(packet) <= PACKET_MAX_BYTES:
        return None
    ident, flags, questions, *records = _HEADER.unpack_from(packet)
    if flags & _OPCODE_AND_CODE:
        return None
    try:
        if flags & _RESPONSE:
            return _read_answer(packet, questions, sum(records))
        return _read_query(packet, ident, questions)
    except UnreadableError:
        return None


def _read_query(packet: bytes, ident: int, questions: int) -> Query | None:
    at = _HEADER.size
    for _ in range(min(questions, _RECORDS_MAX)):
        labels, at = read_name(packet, at)
        kind, about = _unpack(_QUESTION, packet, at)
        at += _QUESTION.size
        if about & ~_TOP_BIT not in (_IN, _ANY):
            continue
        unicast = bool(about & _TOP_BIT)
        if labels == _SERVICE and kind in (_PTR, _ANY):
            return Query(ident, kind, unicast)
        if labels[1:] == _SERVICE and kind in (_SRV, _TXT, _ANY):
            return Query(ident, kind, unicast, labels[0])
    return None


def _read_answer(packet: bytes, questions: int, records: int) -> Answer | None:
    at = _HEADER.size
    for _ in range(min(questions, _RECORDS_MAX)):
        _, at = read_name(packet, at)
        at += _QUESTION.size
    texts = []
    for _ in range(min(records, _RECORDS_MAX)):
        labels, at = read_name(packet, at)
        kind, about, _, length = _unpack(_RECORD, packet, at)
        at += _RECORD.size
        data = packet[at : at + length]
        if len(data) < length:
            raise UnreadableError
        at += length
        if kind == _TXT and about & ~_TOP_BIT == _IN and labels[1:] == _SERVICE:
            texts.append(_text(data))
    return Answer(tuple(texts[:_TEXTS_MAX])) if texts else None


def read_name(packet: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """Return the labels in lower case, and where the name ends; raises UnreadableError."""
    labels: list[bytes] = []
    total = end = pointers = 0
    while True:
        if at >= len(packet):
            raise UnreadableError
        length = packet[at]
        if length & 0xC0 == 0xC0:
            if at + 1 >= len(packet):
                raise UnreadableError
            end = end or at + 2
            at = (length & 0x3F) << 8 | packet[at + 1]
            pointers += 1
            if pointers > _POINTERS_MAX:
                raise UnreadableError
            continue
        if length & 0xC0:
            raise UnreadableError
        at += 1
        if length == 0:
            return tuple(labels), end or at
        label = packet[at : at + length]
        total += 1 + length
        if len(label) < length or total > _NAME_BYTES_MAX or len(labels) >= _NAME_LABELS_MAX:
            raise UnreadableError
        labels.append(label.lower())
        at += length


def _unpack(what: struct.Struct, packet: bytes, at: int) -> tuple[int, ...]:
    if at + what.size > len(packet):
        raise UnreadableError
    return what.unpack_from(packet, at)


def _strings(text: bytes) -> bytes:
    """Return the text as TXT data: strings "0=…", "1=…" of 255 bytes at most (RFC 6763 §6)."""
    out = bytearray()
    step = _TXT_STRING_BYTES_MAX - 2
    for number, start in enumerate(range(0, len(text), step)):
        part = b"%d=" % number + text[start : start + step]
        out += bytes([len(part)]) + part
    return bytes(out)


def _text(data: bytes) -> bytes:
    """Return what `_strings` was given, of any data: strings of another form are left out."""
    out = bytearray()
    at = number = 0
    while at < len(data) and len(out) < _TEXT_BYTES_MAX:
        part = data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
        key = b"%d=" % number
        if part.startswith(key):
            out += part[len(key) :]
            number += 1
    return bytes(out)


def _name(labels: Sequence[bytes]) -> bytes:
    return b"".join(map(_label, labels)) + b"\0"


def _label(label: bytes) -> bytes:
    return bytes([len(label)]) + label


def _pointer(at: int) -> bytes:
    return (_POINTER | at).to_bytes(2, "big")
