"""Envelopes: one encoding, one author, nothing taken that was changed."""

from __future__ import annotations

import msgspec
import pytest

from agent.control import envelope
from agent.errors import PeerError
from agent.identity.keys import NodeKey

KEY = NodeKey(bytes(31) + b"\1")
OTHER = NodeKey(bytes(31) + b"\2")
NOW_MS = 1_700_000_000_000


def sealed(payload: bytes = b"payload", topic: str = "health") -> bytes:
    return envelope.seal(KEY, topic, payload, NOW_MS, 7)


def test_what_is_sealed_is_proved() -> None:
    raw = sealed()
    found = envelope.decode(raw)
    assert (found.author, found.topic, found.payload) == (KEY.id.ed25519, "health", b"payload")
    assert (found.sent_ms, found.sequence) == (NOW_MS, 7)
    assert envelope.proved(found, raw)


@pytest.mark.parametrize("size", [0, 255, 256, 65_535, 65_536])
@pytest.mark.parametrize("topic", ["a", "t" * 32, "t" * 100])
def test_every_size_fits(size: int, topic: str) -> None:
    raw = envelope.seal(KEY, topic, bytes(size), NOW_MS, 2**63 - 1)
    assert len(raw) <= envelope.MAX_BYTES
    assert envelope.proved(envelope.decode(raw), raw)


def test_too_much_and_no_topic_are_our_own_mistakes() -> None:
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        sealed(bytes(65_537))
    for topic in ("", "x" * 101, "é", "a\nb"):
        with pytest.raises(ValueError, match="not a topic name"):
            sealed(topic=topic)


def test_every_changed_byte_is_noticed() -> None:
    raw = sealed()
    for index in range(len(raw)):
        for flip in (1, 0x80):
            changed = bytearray(raw)
            changed[index] ^= flip
            assert not accepted(bytes(changed)), index
    assert accepted(raw)


def accepted(raw: bytes) -> bool:
    try:
        return envelope.proved(envelope.decode(raw), raw)
    except PeerError:
        return False


def test_another_author_cannot_sign_for_this_one() -> None:
    fields = list(msgspec.msgpack.decode(sealed()))
    fields[1] = OTHER.id.ed25519
    assert not accepted(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 2),  # a newer version
        (0, 0),
        (1, b"short"),
        (2, 5),
        (3, -1),
        (3, 2**63),
        (4, -1),
        (5, "text"),
        (6, b"short"),
    ],
)
def test_fields_of_another_form_are_refused(index: int, value: object) -> None:
    fields = list(msgspec.msgpack.decode(sealed()))
    fields[index] = value
    with pytest.raises(PeerError):
        envelope.decode(msgspec.msgpack.encode(fields))


def test_a_second_encoding_of_the_same_message_is_refused() -> None:
    raw = sealed()
    fields = msgspec.msgpack.decode(raw)
    assert msgspec.msgpack.encode(fields) == raw
    longer = b"\xdc\x00\x07" + raw[1:]  # the same array with a longer head
    assert msgspec.msgpack.decode(longer) == fields
    with pytest.raises(PeerError, match="damaged"):
        envelope.decode(longer)
    with pytest.raises(PeerError):
        envelope.decode(raw + b"\0")
    with pytest.raises(PeerError, match="the limit is"):
        envelope.decode(bytes(envelope.MAX_BYTES + 1))
