"""Tickets: read whole or refused, with the reason."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import TicketError, UsageError
from agent.identity.keys import NodeKey
from agent.membership import ticket as tickets
from agent.membership.ticket import Ticket

ISSUER = NodeKey(b"i" * 32).id
NOW = 1_800_000_000.0
TICKET = Ticket(
    version=1,
    mesh_id=b"m" * 32,
    mesh_name="home",
    network_key=b"k" * 32,
    issuer=ISSUER.ed25519,
    invite_id=b"inviteid",
    secret=b"sixteen secrets!",
    addresses=("192.0.2.7:4001", "[2001:db8::7]:4001", "box.example.org:4001"),
    not_after=int(NOW) + 3600,
)
TEXT = TICKET.encode()


def test_a_ticket_survives() -> None:
    assert Ticket.parse(TEXT) == TICKET
    assert TEXT.startswith("covey1")
    assert TEXT.isalnum() and TEXT.islower()
    assert Ticket.parse(TEXT).issuer_id == ISSUER


def test_pasted_and_qr_forms_are_read() -> None:
    wrapped = "\n  ".join(TEXT[at : at + 60] for at in range(0, len(TEXT), 60))
    assert Ticket.parse(f"  {wrapped}\r\n") == TICKET
    assert Ticket.parse(TEXT.upper()) == TICKET


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "hello",
        "covey",
        "covey0abc",
        "coveyxabc",
        "Covey1" + TEXT[6:],
        "x" + TEXT,
        "covey²",
    ],
)
def test_something_else_is_not_a_ticket(text: str) -> None:
    with pytest.raises(TicketError, match="this is not a ticket") as caught:
        Ticket.parse(text)
    assert "covey1" in caught.value.hint


@pytest.mark.parametrize("length", [6, 7, 8, 14, 50, len(TEXT) - 1])
def test_a_ticket_cut_short_is_told(length: int) -> None:
    with pytest.raises(TicketError, match="cut short or garbled") as caught:
        Ticket.parse(TEXT[:length])
    assert caught.value.hint.startswith("Copy it again")


@pytest.mark.parametrize(
    "text",
    [TEXT + "a", TEXT + TEXT, TEXT[:20] + "!" + TEXT[21:], TEXT[:20] + "ı" + TEXT[21:], TEXT + "=",
     TEXT[:-1] + TEXT[-1].upper(), TEXT[:20] + TEXT[20:].upper(), TEXT + "a" * 100_000],
)  # fmt: skip
def test_a_garbled_ticket_is_told(text: str) -> None:
    assert text != TEXT
    with pytest.raises(TicketError, match="cut short or garbled"):
        Ticket.parse(text)


def test_newer_versions_are_told() -> None:
    for text in ("covey2" + TEXT[6:], "covey9whatever"):
        with pytest.raises(TicketError, match="from a newer version") as caught:
            Ticket.parse(text)
        assert "Update" in caught.value.hint
    inside = msgspec.structs.replace(TICKET, version=2).encode()
    with pytest.raises(TicketError, match="from a newer version"):
        Ticket.parse(inside)


@pytest.mark.parametrize("address", ["nowhere", "host:0", "::1:4001", "a b:1", "host:"])
def test_a_ticket_with_an_impossible_address_is_garbled(address: str) -> None:
    bad = msgspec.structs.replace(TICKET, addresses=(address,))
    with pytest.raises(TicketError, match="garbled"):
        Ticket.parse(bad.encode())


@settings(max_examples=200)
@given(st.integers(0, len(TEXT) - 1), st.integers(1, 255))
def test_no_flipped_byte_is_accepted(at: int, flip: int) -> None:
    raw = bytearray(TEXT.encode())
    raw[at] ^= flip
    with pytest.raises(TicketError):
        Ticket.parse(raw.decode("latin-1"))


def test_every_single_bit_of_every_character_matters() -> None:
    for at in range(len(TEXT)):
        for bit in range(8):
            flipped = TEXT[:at] + chr(ord(TEXT[at]) ^ 1 << bit) + TEXT[at + 1 :]
            with pytest.raises(TicketError):
                Ticket.parse(flipped)


@settings(max_examples=100)
@given(st.text(max_size=60))
def test_any_text_is_refused_with_a_ticket_error(text: str) -> None:
    for candidate in (text, "covey1" + text):
        with pytest.raises(TicketError):
            Ticket.parse(candidate)


@settings(max_examples=50)
@given(
    name=st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?\Z"),
    key=st.binary(min_size=32, max_size=32),
    secret=st.binary(min_size=16, max_size=16),
    ports=st.lists(st.integers(1, 65535), max_size=8),
    not_after=st.integers(0, 2**40),
)
def test_every_ticket_is_read_back(
    name: str, key: bytes, secret: bytes, ports: list[int], not_after: int
) -> None:
    ticket = msgspec.structs.replace(
        TICKET,
        mesh_name=name,
        network_key=key,
        secret=secret,
        addresses=tuple(f"192.0.2.1:{port}" for port in ports),
        not_after=not_after,
    )
    assert Ticket.parse(ticket.encode()) == ticket


def test_expiry_is_told_with_how_long_ago() -> None:
    TICKET.check(TICKET.not_after)
    assert not TICKET.expired(TICKET.not_after)
    assert TICKET.expired(TICKET.not_after + 1)
    with pytest.raises(TicketError) as caught:
        TICKET.check(TICKET.not_after + 301)
    assert caught.value.message == "this ticket expired 5 minutes ago"
    assert "agent invite" in caught.value.hint


def test_no_secret_is_in_the_repr() -> None:
    for text in (repr(TICKET), str(TICKET), f"{[TICKET]}"):
        assert "sixteen" not in text
        assert "kkkk" not in text
        assert "home" in text


def test_addresses_given_by_hand_replace_its_own() -> None:
    assert TICKET.at(["10.0.0.1:4001"]).addresses == ("10.0.0.1:4001",)
    with pytest.raises(UsageError, match="is not an address"):
        TICKET.at(["10.0.0.1"])
    with pytest.raises(UsageError, match="at most 8"):
        TICKET.at(["10.0.0.1:4001"] * 9)


def test_an_ordinary_ticket_fits_one_qr_code() -> None:
    # QR version 25 at level L holds 1,853 letters and digits; phones read it from a screen.
    assert len(TEXT) < 450
    assert tickets.MAX_ADDRESSES == 8
