"""What is published on a topic: the payload, its author and the author's signature. A core.

Every node checks this itself, before it handles or forwards a message: libp2p proves who passed a
message on, never who wrote it. `gossip.py` moves envelopes and knows nothing else of them.

    msgpack array: version, author 32, topic, sent_ms, sequence, payload, signature 64

The signature covers a prefix, which no other signature of ours begins with, and all bytes before
the signature's own. One message has one encoding, so its hash names it. `sent_ms` is the author's
clock (unix, ms); with `sequence` it is different for each message of an author.
"""

from __future__ import annotations

import msgspec

from agent.errors import PeerError
from agent.identity.keys import SEED_BYTES, NodeId, NodeKey
from agent.membership import wire

VERSION = 1
# Fits one libp2p message with room; what is larger belongs on a stream of its own.
MAX_PAYLOAD_BYTES = 64 * 1024
MAX_TOPIC_CHARACTERS = 100
# All fields but payload and topic take at most 32 + 64 + 9 + 9 bytes and some heads.
MAX_BYTES = MAX_PAYLOAD_BYTES + MAX_TOPIC_CHARACTERS + 160

_DOMAIN = b"covey-gossip-envelope-v1\0"
_SIGNATURE_BYTES = 64
# A msgpack byte string of 64 bytes: its head, then the bytes.
_SIGNATURE_HEAD = b"\xc4\x40"
_TAIL_BYTES = len(_SIGNATURE_HEAD) + _SIGNATURE_BYTES
_MAX_NUMBER = 2**63 - 1


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """One message; nothing in it is proved until `proved` says so."""

    version: int
    author: bytes
    topic: str
    sent_ms: int
    sequence: int
    payload: bytes
    signature: bytes


def check_topic(topic: str) -> None:
    """Raise ValueError for what is no topic name: 1 to 100 printable ASCII characters."""
    fits = 0 < len(topic) <= MAX_TOPIC_CHARACTERS
    if not (fits and topic.isascii() and topic.isprintable()):
        raise ValueError(f"{topic!r} is not a topic name")


def seal(key: NodeKey, topic: str, payload: bytes, sent_ms: int, sequence: int) -> bytes:
    """Return the bytes that are published; ValueError for a payload over 64 KiB or a bad topic."""
    check_topic(topic)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a message holds at most {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}")
    unsigned = Envelope(
        VERSION, key.id.ed25519, topic, sent_ms, sequence, payload, bytes(_SIGNATURE_BYTES)
    )
    body = msgspec.msgpack.encode(unsigned)[:-_TAIL_BYTES]
    return body + _SIGNATURE_HEAD + key.sign(_DOMAIN + body)


def decode(raw: bytes) -> Envelope:
    """Return the envelope in `raw`, its signature not yet checked.

    Raises PeerError for bytes that are none, too long, of another version, or not encoded as `seal`
    encodes them.
    """
    if len(raw) > MAX_BYTES:
        raise PeerError(f"the message has {len(raw)} bytes, and the limit is {MAX_BYTES}")
    envelope = wire.decode(raw, Envelope, "the message", VERSION, PeerError)
    fits = (
        len(envelope.author) == SEED_BYTES
        and len(envelope.signature) == _SIGNATURE_BYTES
        and len(envelope.payload) <= MAX_PAYLOAD_BYTES
        and 0 <= envelope.sent_ms <= _MAX_NUMBER
        and 0 <= envelope.sequence <= _MAX_NUMBER
    )
    if not fits:
        raise PeerError("the message is damaged")
    return envelope


def proved(envelope: Envelope, raw: bytes) -> bool:
    """Say whether the author has signed `raw`, which `decode` made into `envelope`."""
    return NodeId(envelope.author).verify(envelope.signature, _DOMAIN + raw[:-_TAIL_BYTES])
