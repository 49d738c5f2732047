"""The first bytes: whoever lacks the key, or only has a recording, gets nothing."""

from __future__ import annotations

import random

import pytest
from Crypto.Cipher import Salsa20

from agent.control import preamble
from agent.control.preamble import FIRST_BYTES, GREETING, Doorkeeper, make_nonce

KEY, NEW, OTHER = (bytes([n]) * 32 for n in (1, 2, 3))
OWN, ELSEWHERE = bytes([8]) * 32, bytes([9]) * 32
STARTED = 1_700_000_000.0
NOW = STARTED + 1000


def first(
    key: bytes = KEY, called: bytes = OWN, wall: float = NOW, chance: bytes = b"abcd"
) -> bytes:
    nonce = make_nonce(key, called, wall, chance)
    return nonce + Salsa20.new(key=key, nonce=nonce).encrypt(GREETING)


def door() -> Doorkeeper:
    return Doorkeeper(OWN, STARTED)


@pytest.mark.parametrize("called", [OWN, b""])
@pytest.mark.parametrize("key", [KEY, NEW])
def test_a_member_is_let_in_with_any_accepted_key(key: bytes, called: bytes) -> None:
    raw = first(key, called)
    opened = door().open(raw, [NEW, KEY], NOW)
    assert opened is not None
    assert opened.key == key
    # The cipher goes on where the greeting ended.
    sender = Salsa20.new(key=key, nonce=raw[:8])
    sender.encrypt(GREETING)
    assert opened.cipher.decrypt(sender.encrypt(b"more")) == b"more"


def test_the_library_reads_what_we_send() -> None:
    """libp2p's own listener takes the nonce as it is: the wire is that of its private network."""
    raw = first()
    assert Salsa20.new(key=KEY, nonce=raw[:8]).decrypt(raw[8:]) == GREETING
    assert len(raw) == FIRST_BYTES


def test_another_key_and_random_bytes_are_not() -> None:
    chance = random.Random(1)
    keeper = door()
    assert keeper.open(first(OTHER), [NEW, KEY], NOW) is None
    for _ in range(500):
        assert keeper.open(chance.randbytes(FIRST_BYTES), [NEW, KEY], NOW) is None
    assert keeper.open(bytes(FIRST_BYTES), [NEW, KEY], NOW) is None
    assert not keeper._nonces


def test_a_recording_is_good_once_here_and_never_elsewhere() -> None:
    raw = first()
    keeper = door()
    assert keeper.open(raw, [KEY], NOW) is not None
    assert keeper.open(raw, [KEY], NOW + 1) is None
    assert Doorkeeper(ELSEWHERE, STARTED).open(raw, [KEY], NOW) is None


@pytest.mark.parametrize(
    ("late_s", "taken"), [(-121, False), (-119, True), (119, True), (122, False)]
)
def test_the_time_must_be_ours(late_s: float, taken: bool) -> None:
    assert (door().open(first(wall=NOW - late_s), [KEY], NOW) is not None) is taken


def test_what_was_made_before_this_node_started_is_not_for_it() -> None:
    keeper = Doorkeeper(OWN, NOW)
    assert keeper.open(first(wall=NOW - 10), [KEY], NOW + 1) is None
    assert keeper.open(first(wall=NOW - 2), [KEY], NOW + 1) is not None


def test_every_changed_bit_of_the_first_bytes_is_refused() -> None:
    raw = first()
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        assert door().open(bytes(changed), [KEY], NOW) is None, bit


def test_nonces_are_forgotten_when_their_time_is_over_and_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preamble, "MAX_NONCES", 10)
    keeper = door()
    for n in range(30):
        assert keeper.open(first(chance=n.to_bytes(4, "big")), [KEY], NOW) is not None
    assert len(keeper._nonces) == 10
    later = NOW + 3 * preamble.CLOCK_SKEW_S
    assert keeper.open(first(wall=later), [KEY], later) is not None
    assert len(keeper._nonces) == 1
