import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.messages import Answered, Asked, Goodbye, Message
from agent.discovery.record import RECORD_MAX_BYTES
from agent.discovery.seal import PAYLOAD_MAX_BYTES
from agent.discovery.store import DIGEST_BYTES, PROVIDERS_MAX
from agent.identity.keys import NodeId

IDENT = b"identity"
KEY = bytes(range(20))
CONTACT = Contact(b"m" * 32, NodeId(b"k" * 32), "2001:db8::1", 4002)
CONTENTS = [
    Asked(messages.Ping(), True, False, b"certificate"),
    Asked(messages.FindNode(KEY), True, True),
    Asked(messages.FindRecords(KEY, b"saltsalt", b"have"), False, True),
    Asked(messages.Store(KEY, b"record"), True, True),
    Answered(messages.Pong(messages.pack_address("192.0.2.1", 5)), True),
    Answered(messages.Contacts((CONTACT.packed,)), True, b"certificate"),
    Answered(messages.Records((b"a", b"b"), 3, (CONTACT.packed,)), False),
    Answered(messages.Stored(True, 2**62), True),
    Answered(messages.Promise(True), True),
    Asked(messages.TestMe(IDENT), True, True),
    Asked(messages.Knock(bytes(32), messages.pack_address("192.0.2.1", 5), IDENT), True, True),
]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda c: repr(c)[:30])
def test_messages_come_back(content: Asked | Answered) -> None:
    message = Message(IDENT, content)
    assert messages.decode(messages.encode(message)) == message


def test_goodbye_comes_back() -> None:
    assert messages.decode(messages.encode(Message(b"", Goodbye()))) == Message(b"", Goodbye())


def test_the_largest_store_and_question_fit_a_datagram() -> None:
    have = bytes(DIGEST_BYTES * PROVIDERS_MAX)
    for question in (
        messages.Store(KEY, bytes(RECORD_MAX_BYTES)),
        messages.FindRecords(KEY, bytes(8), have),
    ):
        assert messages.fits(Message(IDENT, Asked(question, True, True)))


def test_an_answer_filled_to_its_room_fits_a_datagram() -> None:
    certificate = bytes(330)
    packed = CONTACT.packed
    count = messages.room_for_records(certificate) // (len(packed) + 2)
    reply = messages.Records((), 256, (packed,) * min(count, messages.CONTACTS_MAX))
    assert messages.fits(Message(IDENT, Answered(reply, True, certificate)))
    record = bytes(messages.room_for_records(b"") - 3)
    assert len(record) >= RECORD_MAX_BYTES
    full = Message(IDENT, Answered(messages.Records((record,), 256, ()), True))
    assert len(messages.encode(full)) <= PAYLOAD_MAX_BYTES


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"B1",
        b"X" + IDENT,
        b"Q" + IDENT,
        messages.encode(Message(IDENT, CONTENTS[0])) + b"\0",
        messages.encode(Message(IDENT, Asked(messages.FindNode(b"short"), True, True))),
        messages.encode(Message(IDENT, Answered(messages.Contacts((b"x" * 51,)), True))),
        messages.encode(Message(IDENT, Answered(messages.Contacts((CONTACT.packed,) * 17), True))),
        messages.encode(Message(IDENT, Asked(messages.Ping(), True, True, bytes(600)))),
        messages.encode(Message(IDENT, Answered(messages.Stored(True, -1), True))),
        b"A" + messages.encode(Message(IDENT, CONTENTS[0]))[1:],
        b"Q" + IDENT + b"\x91" * 1000,
    ],
)
def test_what_is_not_of_our_form_is_no_message(payload: bytes) -> None:
    assert messages.decode(payload) is None


@settings(max_examples=150)
@given(kind=st.sampled_from([b"Q", b"A", b"B", b""]), noise=st.binary(max_size=300))
def test_no_bytes_raise(kind: bytes, noise: bytes) -> None:
    found = messages.decode(kind + noise)
    assert found is None or isinstance(found, Message)


@settings(max_examples=100)
@given(st.binary(min_size=30, max_size=55))
def test_no_contact_raises_and_the_good_ones_come_back(packed: bytes) -> None:
    contact = Contact.unpack(b"m" * 32, packed)
    if contact is not None:
        again = Contact.unpack(b"m" * 32, contact.packed)
        assert again is not None
        assert again.place == contact.place


@pytest.mark.parametrize("host", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"])
def test_nobody_lives_at_such_an_address(host: str) -> None:
    assert messages.unpack_address(messages.pack_address(host, 4002)) is None


def test_port_zero_is_no_address_and_mapped_ipv4_is_ipv4() -> None:
    assert messages.unpack_address(messages.pack_address("192.0.2.1", 0)) is None
    mapped = messages.pack_address("::ffff:192.0.2.1", 7)
    assert messages.unpack_address(mapped) == ("192.0.2.1", 7)
