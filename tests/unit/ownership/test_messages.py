"""Beats on the wire: what is read is what was written, and nothing else is read at all."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import PeerError
from agent.ownership import messages
from agent.ownership.lease import Token
from agent.ownership.messages import Beat, Claim, Grant, Here, Hint, Item, Refuse, Release, Report

NODE = bytes(32)
TOKEN = Token(7, NODE)
ITEMS: list[Item] = [
    Claim("m", 1, 2, 3), Grant("m", TOKEN, 1, 3, Report(2, 9)),
    Refuse("m", 1, None, 0, 5, Report()), Refuse("m", 1, TOKEN, 4, 5, Report(1, 1)),
    Release("m", TOKEN), Beat("m", NODE, TOKEN, True), Beat("m", None, None, False),
    Hint("m", NODE), Here("m", Report(2, 4)),
]  # fmt: skip


def test_items_are_read_as_they_were_written() -> None:
    (datagram,) = messages.encode(ITEMS)
    assert messages.decode(datagram) == ITEMS


def test_many_items_take_several_datagrams_that_fit_the_overlay() -> None:
    many: list[Item] = [Beat("x" * 64, NODE, TOKEN, True)] * 300
    datagrams = list(messages.encode(many))
    assert max(map(len, datagrams)) <= messages.MAX_DATAGRAM_BYTES
    assert [item for datagram in datagrams for item in messages.decode(datagram)] == many
    assert len(datagrams) <= 300 * 150 / messages.MAX_DATAGRAM_BYTES + 2
    assert list(messages.encode([])) == []


@pytest.mark.parametrize(
    "what",
    [
        (2, []), (1, [["z", "m"]]), (1, [["h", "m", bytes(31)]]), (1, [["i", "", [0, 0]]]),
        (1, [["c", "m", -1, 0, 0]]), (1, [["i", "m", [9, 0]]]), (1, [["h", "m", NODE, 1]]),
        (1, [["h", "m", NODE]] * 201), [], 5,
    ],
)  # fmt: skip
def test_what_nobody_would_send_is_refused(what: object) -> None:
    with pytest.raises(PeerError):
        messages.decode(msgspec.msgpack.encode(what))


def test_what_cannot_be_read_is_told_in_printable_words() -> None:
    with pytest.raises(PeerError, match="cannot be read: Invalid value") as caught:
        messages.decode(msgspec.msgpack.encode((1, [["\x1b[2J", "m"]])))
    assert caught.value.message.isprintable()


@settings(max_examples=300, deadline=None, database=None)
@given(st.binary(max_size=80), st.integers(0, 60))
def test_no_bytes_raise_anything_else(raw: bytes, at: int) -> None:
    (good,) = messages.encode(ITEMS)
    for datagram in (raw, good[:at] + raw + good[at:], good[:at]):
        try:
            messages.decode(datagram)
        except PeerError as error:
            assert "beat" in error.message
