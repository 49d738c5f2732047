"""The sealed datagrams, the doors that judge them, and the tunnel's hello."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay_ends import ANNA, BERT, KEYS, MESH, OTHER_KEYS, RELAY, seal_of

from agent.errors import UsageError
from agent.identity.keys import NodeId
from agent.membership.networkkeys import NetworkKeys
from agent.relay.door import CLOCK_SKEW_S, COOKIE_SLOT_S, Door, Taken
from agent.relay.hello import Hello, HelloSeal
from agent.relay.pairs import Place, unmapped
from agent.relay.wire import (
    DATAGRAM_BYTES,
    MAGIC,
    NO_COOKIE,
    Challenge,
    Message,
    Open,
    Opened,
    PairSeal,
)

NOW = 1_800_000_000.0
NONCE = bytes(range(24))
ID = b"an id :)"
HOME, AWAY = ("192.0.2.1", 5000), ("198.51.100.7", 6000)

ids = st.binary(min_size=8, max_size=8)
times = st.integers(0, 2**63 - 1)
cookies = st.binary(min_size=16, max_size=16)
places = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))
all_messages = st.one_of(
    st.builds(Open, ids, times, cookies),
    st.builds(Challenge, ids, times, cookies),
    st.builds(Opened, ids, times, places, st.booleans()),
)


@given(all_messages, st.binary(min_size=24, max_size=24))
def test_what_is_sealed_for_a_node_opens_there_alone(message: Message, nonce: bytes) -> None:
    datagram = seal_of(ANNA, RELAY).seal(message, nonce)
    assert len(datagram) == DATAGRAM_BYTES
    assert datagram.startswith(MAGIC)
    assert seal_of(RELAY, ANNA).open(datagram) == message
    assert seal_of(ANNA, RELAY).open(datagram) is None  # sent back at its sender
    assert seal_of(RELAY, BERT).open(datagram) is None
    assert seal_of(BERT, ANNA).open(datagram) is None
    assert seal_of(RELAY, ANNA, OTHER_KEYS).open(datagram) is None


@given(all_messages, st.integers(0, DATAGRAM_BYTES * 8 - 1))
def test_any_changed_bit_closes_it(message: Message, bit: int) -> None:
    datagram = bytearray(seal_of(ANNA, RELAY).seal(message, NONCE))
    datagram[bit // 8] ^= 1 << bit % 8
    assert seal_of(RELAY, ANNA).open(bytes(datagram)) is None


@given(st.binary(max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    assert seal_of(RELAY, ANNA).open(noise) is None
    assert seal_of(RELAY, ANNA).open(MAGIC + noise) is None


@given(st.binary(min_size=53, max_size=53))
def test_what_a_node_seals_by_mistake_raises_nothing(plain: bytes) -> None:
    import nacl.bindings

    sender = seal_of(ANNA, RELAY)
    sealed = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
        plain, sender._out, NONCE, sender._sending
    )
    opened = seal_of(RELAY, ANNA).open(MAGIC + NONCE + sealed)
    assert opened is None or sender.seal(opened, NONCE) == MAGIC + NONCE + sealed


def test_all_keys_that_are_accepted_open() -> None:
    both = NetworkKeys(OTHER_KEYS.sending, (OTHER_KEYS.sending, KEYS.sending))
    message = Open(ID, 5)
    assert seal_of(RELAY, ANNA, both).open(seal_of(ANNA, RELAY).seal(message, NONCE)) == message
    assert seal_of(ANNA, RELAY).open(seal_of(RELAY, ANNA, both).seal(message, NONCE)) is None


def test_no_point_of_the_curve_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        PairSeal(ANNA, NodeId(b"\x02" + bytes(31)), MESH, KEYS)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8::0:1", "2001:db8::1"),
    ],
)
def test_addresses_as_people_write_them(written: str, read: str) -> None:
    assert unmapped(written) == read


# The door.


class Side:
    """Anna at her door, and the seat that it gave her."""

    def __init__(self) -> None:
        self.door = Door(ID, seal_of(RELAY, ANNA), b"\7" * 32)
        self.seal = seal_of(ANNA, RELAY)
        self.seat: Place | None = None
        self.sent_us = int(NOW * 1e6)

    def open(self, cookie: bytes = NO_COOKIE) -> bytes:
        self.sent_us += 1
        return self.seal.seal(Open(ID, self.sent_us, cookie), NONCE)

    def take(self, datagram: bytes, source: Place, now: float = NOW) -> Taken:
        taken = self.door.take(datagram, source, self.seat, now, NONCE, peer_open=False)
        if taken.opened:
            self.seat = source
        return taken

    def answer(self, taken: Taken) -> Message | None:
        return None if taken.answer is None else self.seal.open(taken.answer)

    def come(self, place: Place, now: float = NOW) -> None:
        challenge = self.answer(self.take(self.open(), place, now))
        assert isinstance(challenge, Challenge)
        opened = self.answer(self.take(self.open(challenge.cookie), place, now))
        assert opened == Opened(ID, self.sent_us, place, False)


def test_a_place_counts_after_a_round_trip() -> None:
    side = Side()
    side.come(HOME)
    assert side.seat == HOME
    assert isinstance(side.answer(side.take(side.open(), HOME)), Opened)
    side.come(AWAY)
    assert side.seat == AWAY


def test_a_cookie_is_good_at_its_place_and_for_a_while() -> None:
    side = Side()
    challenge = side.answer(side.take(side.open(), HOME))
    assert isinstance(challenge, Challenge)
    assert isinstance(side.answer(side.take(side.open(challenge.cookie), AWAY)), Challenge)
    late = side.take(side.open(challenge.cookie), HOME, NOW + 2 * COOKIE_SLOT_S)
    assert isinstance(side.answer(late), Challenge)
    still = side.take(side.open(challenge.cookie), HOME, NOW + COOKIE_SLOT_S)
    assert isinstance(side.answer(still), Opened)


def test_nothing_counts_twice_or_late() -> None:
    side = Side()
    first, second = side.open(), side.open()
    assert side.take(second, HOME).answer
    assert side.take(second, AWAY) == Taken()
    assert side.take(first, HOME) == Taken()
    assert side.take(side.open(), HOME, NOW + CLOCK_SKEW_S + 1) == Taken()
    assert side.take(side.open(), HOME, NOW - CLOCK_SKEW_S - 1) == Taken()


def test_what_is_not_for_the_relay_passes_from_the_seat_alone() -> None:
    side = Side()
    probe = MAGIC + bytes(100)
    assert side.take(probe, HOME) == Taken()
    side.come(HOME)
    assert side.take(probe, HOME) == Taken(foreign=True)
    assert side.take(probe, AWAY) == Taken()


def test_what_only_the_relay_says_is_nothing_to_it() -> None:
    side = Side()
    for message in (Challenge(ID, 1, b"c" * 16), Opened(ID, 1, HOME, True), Open(b"another!", 1)):
        assert side.take(side.seal.seal(message, NONCE), HOME) == Taken()


@given(places, places)
def test_answers_are_never_longer_than_questions(one: Place, other: Place) -> None:
    side = Side()
    for place in (one, other):
        question = side.open()
        taken = side.take(question, place)
        assert taken.answer is not None
        assert len(taken.answer) <= len(question)


# The tunnel's hello.

SEEN = b"f" * 32
HELLO = Hello(ANNA.id, ID, int(NOW * 1e6), b"n" * 16)


def test_a_hello_is_good_for_one_relay_and_certificate() -> None:
    seal = HelloSeal(MESH, KEYS)
    header = seal.hello(HELLO, ANNA, RELAY.id, SEEN, NONCE)
    assert seal.read_hello(header, RELAY.id, SEEN, NOW) == HELLO
    assert seal.read_hello(header, BERT.id, SEEN, NOW) is None
    assert seal.read_hello(header, RELAY.id, b"g" * 32, NOW) is None
    assert seal.read_hello(header, RELAY.id, SEEN, NOW + CLOCK_SKEW_S + 1) is None
    assert HelloSeal(MESH, OTHER_KEYS).read_hello(header, RELAY.id, SEEN, NOW) is None
    forged = seal.hello(HELLO, BERT, RELAY.id, SEEN, NONCE)
    assert seal.read_hello(forged, RELAY.id, SEEN, NOW) is None


def test_a_welcome_is_the_relays_answer_to_this_hello() -> None:
    seal = HelloSeal(MESH, KEYS)
    header = seal.welcome(HELLO, RELAY, SEEN, NONCE)
    assert seal.is_welcome(header, HELLO, RELAY.id, SEEN)
    assert not seal.is_welcome(header, replace(HELLO, nonce=b"m" * 16), RELAY.id, SEEN)
    assert not seal.is_welcome(header, HELLO, BERT.id, SEEN)
    assert not seal.is_welcome(header, HELLO, RELAY.id, b"g" * 32)
    assert not seal.is_welcome("", HELLO, RELAY.id, SEEN)


@given(st.text())
def test_any_header_is_read_or_refused(header: str) -> None:
    assert HelloSeal(MESH, KEYS).read_hello(header, RELAY.id, SEEN, NOW) is None
    assert HelloSeal(MESH, KEYS).read_hello(f"Bearer {header}", RELAY.id, SEEN, NOW) is None
