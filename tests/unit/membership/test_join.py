"""Joining: what the issuer answers, and what the newcomer believes."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import MembershipError, PeerError, TicketError, UsageError
from agent.identity import addresses
from agent.identity.addresses import DEFAULT_IPV4_NETWORK
from agent.identity.keys import NodeKey
from agent.membership import issuer, join
from agent.membership.certificate import Certificate
from agent.membership.invites import InviteBook
from agent.membership.join import JoinReply, JoinRequest, Member, MemberInfo
from agent.membership.ticket import Ticket

ROOT = NodeKey(b"r" * 32)
FOUNDER = NodeKey(b"f" * 32)
NEWCOMER = NodeKey(b"n" * 32)
NOW = 1_800_000_000.0
NETWORK = DEFAULT_IPV4_NETWORK
FOUNDED = issuer.issue(ROOT, [], FOUNDER.id, "box", ["issuer"], [], NETWORK, NOW, 3600)
BOOK, INVITE, SECRET = InviteBook().create(
    random.Random(1).randbytes, NOW, ttl_s=600, roles=["worker", "relay"], tags=["home"]
)
TICKET = Ticket(
    version=1,
    mesh_id=addresses.mesh_id(ROOT.id),
    mesh_name="home",
    network_key=b"k" * 32,
    issuer=FOUNDER.id.ed25519,
    invite_id=INVITE.id,
    secret=SECRET,
    addresses=("192.0.2.1:4001",),
    not_after=INVITE.not_after,
)
REQUEST = JoinRequest.to(TICKET, "box")


def answer(request: JoinRequest = REQUEST, now: float = NOW) -> tuple[InviteBook, Certificate]:
    return join.answer(request, NEWCOMER.id, BOOK, ROOT, [FOUNDED], NETWORK, now, 3600)


def reply(**changes: object) -> JoinReply:
    made = JoinReply(
        certificate=answer()[1].encode(),
        root=ROOT.id.ed25519,
        ipv4_network=str(NETWORK),
        members=(Member(FOUNDED, ("192.0.2.1:51820",)).info(),),
    )
    return msgspec.structs.replace(made, **changes)


def check(changed: JoinReply, now: float = NOW) -> Certificate:
    return join.check_reply(TICKET, changed, NEWCOMER.id, now)


def test_a_right_ticket_gives_the_certificate_that_its_invite_says() -> None:
    book, certificate = answer()
    assert certificate.node_id == NEWCOMER.id
    assert certificate.name == "box-2"
    assert certificate.roles == ("worker", "relay")
    assert certificate.tags == ("home",)
    assert book.invites[0].uses_left == 0
    assert check(reply()) == certificate


@pytest.mark.parametrize(
    ("request_", "now", "words"),
    [
        (msgspec.structs.replace(REQUEST, secret=bytes(16)), NOW, "not known"),
        (msgspec.structs.replace(REQUEST, invite_id=bytes(8)), NOW, "not known"),
        (REQUEST, NOW + 600 + 7200, "expired 2 hours ago"),
    ],
)
def test_a_bad_ticket_is_refused(request_: JoinRequest, now: float, words: str) -> None:
    with pytest.raises(TicketError, match=words):
        answer(request_, now)


def test_a_used_up_ticket_is_refused() -> None:
    book, certificate = answer()
    other = NodeKey(b"o" * 32)
    with pytest.raises(TicketError, match="used up"):
        join.answer(REQUEST, other.id, book, ROOT, [FOUNDED, certificate], NETWORK, NOW)


def test_a_bad_name_takes_no_use() -> None:
    with pytest.raises(UsageError, match="cannot be a name"):
        answer(msgspec.structs.replace(REQUEST, name="No Name"))
    assert BOOK.invites[0].uses_left == 1


def test_messages_survive() -> None:
    assert JoinRequest.decode(REQUEST.encode()) == REQUEST
    assert JoinReply.decode(reply().encode()) == reply()


def test_the_request_hides_its_secret() -> None:
    assert repr(SECRET) not in repr(REQUEST)
    assert "box" in repr(REQUEST)


@settings(max_examples=100)
@given(st.binary(max_size=100))
def test_any_bytes_are_refused_with_a_peer_error(raw: bytes) -> None:
    for kind in (JoinRequest, JoinReply):
        with pytest.raises(PeerError, match=r"damaged|newer version"):
            kind.decode(raw)


@pytest.mark.parametrize("version", [0, 2])
def test_other_versions_are_refused(version: int) -> None:
    words = "newer version" if version > 1 else "damaged"
    with pytest.raises(PeerError, match=f"join request is .*{words}"):
        JoinRequest.decode(msgspec.structs.replace(REQUEST, version=version).encode())
    with pytest.raises(PeerError, match=f"join reply is .*{words}"):
        JoinReply.decode(reply(version=version).encode())


def test_strings_that_are_not_utf_8_are_damage() -> None:
    raw = REQUEST.encode()
    assert raw.endswith(b"box")
    with pytest.raises(PeerError, match="damaged"):
        JoinRequest.decode(raw[:-3] + b"\xff\xfeb")


def test_a_reply_from_another_mesh_is_refused() -> None:
    other = NodeKey(b"o" * 32)
    certificate = issuer.issue(other, [], NEWCOMER.id, "box", ["worker"], [], NETWORK, NOW)
    forged = reply(root=other.id.ed25519, certificate=certificate.encode())
    with pytest.raises(MembershipError, match="another mesh than the ticket's"):
        check(forged)


def test_a_reply_with_a_certificate_of_another_root_is_refused() -> None:
    other = NodeKey(b"o" * 32)
    certificate = issuer.issue(other, [], NEWCOMER.id, "box", ["worker"], [], NETWORK, NOW)
    with pytest.raises(MembershipError, match="is for another mesh"):
        check(reply(certificate=certificate.encode()))


def test_a_reply_for_another_node_is_refused() -> None:
    with pytest.raises(MembershipError, match="certificate of another node"):
        check(reply(certificate=FOUNDED.encode()))


def test_a_reply_with_an_expired_certificate_is_refused() -> None:
    with pytest.raises(MembershipError, match="expired 1 minute ago"):
        check(reply(), NOW + 3600 + 60)


def test_a_newcomer_whose_clock_is_behind_is_told() -> None:
    with pytest.raises(MembershipError, match="not yet valid") as caught:
        check(reply(), NOW - 3600)
    assert "clock" in caught.value.hint


@pytest.mark.parametrize("raw", [b"", b"\x9b", bytes(100)])
def test_a_reply_with_a_damaged_certificate_is_refused(raw: bytes) -> None:
    with pytest.raises(MembershipError, match="damaged"):
        check(reply(certificate=raw))


@pytest.mark.parametrize("network", ["", "0.0.0.0/0", "8.0.0.0/8", "10.77.0.1/16"])
def test_a_reply_with_an_impossible_network_is_refused(network: str) -> None:
    with pytest.raises(MembershipError, match="the answer cannot be used"):
        check(reply(ipv4_network=network))


def test_only_members_that_verify_are_taken_over() -> None:
    other = NodeKey(b"o" * 32)
    foreign = issuer.issue(other, [], other.id, "evil", ["worker"], [], NETWORK, NOW)
    expired = issuer.issue(ROOT, [], other.id, "old", ["worker"], [], NETWORK, NOW - 9999, 3600)
    good = Member(FOUNDED, ("192.0.2.1:51820",), ("192.0.2.1:4001",), ("192.0.2.1:4002",))
    infos = (
        Member(foreign).info(),
        Member(expired).info(),
        MemberInfo(certificate=b"junk"),
        MemberInfo(certificate=FOUNDED.encode(), control_addresses=("nonsense",)),
        good.info(),
    )
    assert join.known_members(reply(members=infos), NOW) == (good,)


def test_a_reply_with_a_thousand_members_fits_the_control_planes_limit() -> None:
    text = "[2001:db8:1111:2222:3333:4444:5555:6666]:51820"
    member = Member(FOUNDED, (text,) * 8, (text,) * 8, (text,) * 8).info()
    assert len(reply(members=(member,) * 1000).encode()) < 4 * 1024 * 1024
