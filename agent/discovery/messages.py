"""The words inside a sealed datagram: questions, answers, a goodbye and a probe. A core.

Used by `protocol.py`. The form is ours and not rpcudp's, which unpacks whatever comes and calls the
method that it names; here every field has a type and a limit, and anything else is no message.

    b"Q" | id 8 | Question     b"A" | id 8 | Answer     b"B" (goodbye)     b"P" | id 8 (probe)

A question carries the asker's certificate until the other is known to have it, and says whether the
asker has the other's. Whoever has shown none gets no answer: a member that was forgotten shows its
certificate when it repeats the question. `serves` is false for nodes that cannot be reached: nobody
puts them in a routing table.

A node that wants to know whether it can be reached asks a contact to `TestMe`; that one asks
another member to `Knock`, which sends a probe to the address where the contact saw the node, from a
port that the node has never sent to. A probe gets no answer; it is smaller than what made it go
out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated

import msgspec

from agent.discovery.seal import PAYLOAD_MAX_BYTES
from agent.discovery.store import DIGEST_BYTES, PROVIDERS_MAX

ID_BYTES = 8
SALT_BYTES = 8
# Contacts in one answer: Kademlia's k (bucket size too). 16 of IPv6 take 832 bytes of a datagram.
CONTACTS_MAX = 16
CERTIFICATE_MAX_BYTES = 512

_Id = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
_Key = Annotated[bytes, msgspec.Meta(min_length=20, max_length=20)]
_Certificate = Annotated[bytes, msgspec.Meta(max_length=CERTIFICATE_MAX_BYTES)]
# A contact: Ed25519 key 32 | port 2 | address 4 or 16.
_Contact = Annotated[bytes, msgspec.Meta(min_length=38, max_length=50)]
_Contacts = Annotated[tuple[_Contact, ...], msgspec.Meta(max_length=CONTACTS_MAX)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=PROVIDERS_MAX)]
_Have = Annotated[bytes, msgspec.Meta(max_length=DIGEST_BYTES * PROVIDERS_MAX)]


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """Are you there?"""


class FindNode(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """Whom do you know near this key?"""

    key: _Key


class FindRecords(msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True):
    """What do you hold under this key that I lack? With `closer`: and whom do you know near it?"""

    key: _Key
    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    have: _Have
    closer: bool = True


class Store(msgspec.Struct, frozen=True, array_like=True, tag=4, forbid_unknown_fields=True):
    """Keep this record."""

    key: _Key
    record: bytes


class TestMe(msgspec.Struct, frozen=True, array_like=True, tag=5, forbid_unknown_fields=True):
    """Have another member send a probe with this id to where my question came from."""

    __test__ = False  # no test class, whatever pytest takes it for
    probe: _Id


class Knock(msgspec.Struct, frozen=True, array_like=True, tag=6, forbid_unknown_fields=True):
    """Send this node a probe with this id, at this address."""

    node: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    address: Annotated[bytes, msgspec.Meta(min_length=6, max_length=18)]
    probe: _Id


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """I am here, and this is where your question came from (port 2 | address 4 or 16)."""

    seen_from: Annotated[bytes, msgspec.Meta(min_length=6, max_length=18)]


class Contacts(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """Those I know nearest to the key."""

    contacts: _Contacts


class Records(msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True):
    """Some of what you lack, how many did not fit, and contacts in what room was left.

    `holds` says that I keep something under the key, whether you lack it or not.
    """

    records: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=PROVIDERS_MAX)]
    left_out: _Count
    contacts: _Contacts
    holds: bool = False


class Stored(msgspec.Struct, frozen=True, array_like=True, tag=4, forbid_unknown_fields=True):
    """Kept or not; and the sequence that I hold for that node (0: none)."""

    accepted: bool
    held_seq: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Promise(msgspec.Struct, frozen=True, array_like=True, tag=5, forbid_unknown_fields=True):
    """A probe will be sent, or not (too many were asked for)."""

    given: bool


Question = Ping | FindNode | FindRecords | Store | TestMe | Knock
Reply = Pong | Contacts | Records | Stored | Promise


class Asked(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A question with what the asker says of itself."""

    question: Question
    serves: bool
    knows_you: bool
    certificate: _Certificate = b""


class Answered(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A reply with what the one asked says of itself."""

    reply: Reply
    serves: bool
    certificate: _Certificate = b""


@dataclass(frozen=True)
class Goodbye:
    """I am going away now: forget my address."""


@dataclass(frozen=True)
class Probe:
    """Whoever asked for this can be reached."""


@dataclass(frozen=True)
class Message:
    """What a payload said; `id` matches an answer to its question, and a probe to its wish."""

    id: bytes
    content: Asked | Answered | Goodbye | Probe


_encode = msgspec.msgpack.Encoder().encode
_decode_asked = msgspec.msgpack.Decoder(Asked).decode
_decode_answered = msgspec.msgpack.Decoder(Answered).decode
# An answer with records: kind, id and the arrays' own bytes, rounded up.
_ANSWER_FRAME_BYTES = 40
# Each answer names up to 16 contacts, mostly the same ones: reading them was half of a lookup.
_ADDRESSES_REMEMBERED = 4096


def encode(message: Message) -> bytes:
    """Return the payload."""
    if isinstance(message.content, Goodbye):
        return b"B"
    if isinstance(message.content, Probe):
        return b"P" + message.id
    kind = b"Q" if isinstance(message.content, Asked) else b"A"
    return kind + message.id + _encode(message.content)


def decode(payload: bytes) -> Message | None:
    """Return the message, or None for anything that is not one. Never raises."""
    if payload == b"B":
        return Message(b"", Goodbye())
    kind, ident, body = payload[:1], payload[1 : 1 + ID_BYTES], payload[1 + ID_BYTES :]
    if kind == b"P" and len(payload) == 1 + ID_BYTES:
        return Message(ident, Probe())
    try:
        if kind == b"Q":
            return Message(ident, _decode_asked(body))
        if kind == b"A":
            return Message(ident, _decode_answered(body))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return None


def room_for_records(certificate: bytes) -> int:
    """Return the bytes that records and contacts may take in an answer with this certificate."""
    return PAYLOAD_MAX_BYTES - _ANSWER_FRAME_BYTES - len(certificate)


def fits(message: Message) -> bool:
    """Say whether a message fits one datagram."""
    return len(encode(message)) <= PAYLOAD_MAX_BYTES


@lru_cache(_ADDRESSES_REMEMBERED)
def pack_address(host: str, port: int) -> bytes:
    """Return port 2 | address 4 or 16; `host` is an IP address as text."""
    return port.to_bytes(2, "big") + ip_address(host).packed


@lru_cache(_ADDRESSES_REMEMBERED)
def unpack_address(packed: bytes) -> tuple[str, int] | None:
    """Return (host, port), or None for an address that no datagram can be sent to."""
    port, raw = int.from_bytes(packed[:2], "big"), packed[2:]
    if len(raw) not in (4, 16) or port == 0:
        return None
    address: IPv4Address | IPv6Address = ip_address(raw)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_unspecified or address.is_multicast or address == IPv4Address("255.255.255.255"):
        return None
    return str(address), port
