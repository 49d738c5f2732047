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
from agent.membership import issuer, join, revocation
from agent.membership.certificate import Certificate
from agent.membership.grant import Signer
from agent.membership.invites import InviteBook
from agent.membership.join import JoinReply, JoinRequest, Member, MemberInfo
from agent.membership.keyring import KeyRing, OfferedKey
from agent.membership.revocation import Revocation, Revocations
from agent.membership.ticket import Ticket

ROOT = NodeKey(b"r" * 32)
FOUNDER = NodeKey(b"f" * 32)
NEWCOMER = NodeKey(b"n" * 32)
NOW = 1_800_000_000.0
NETWORK = DEFAULT_IPV4_NETWORK
SIGNER = Signer.of_root(ROOT)
FOUNDED = issuer.issue(SIGNER, [], FOUNDER.id, "box", ["issuer"], [], NETWORK, NOW, 3600)
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
REQUEST = JoinRequest.to(TICKET, "box", NEWCOMER)
RING = KeyRing.founding(b"k" * 32)
REVOKED = revocation.sign(SIGNER, 1, [Revocation(b"x" * 32, int(NOW), "stolen")])


def answer(request: JoinRequest = REQUEST, now: float = NOW) -> tuple[InviteBook, Certificate]:
    return join.answer(request, BOOK, SIGNER, [FOUNDED], NETWORK, now, 3600)


def request(key: NodeKey, **changes: object) -> JoinRequest:
    """A request of `key`, properly signed, for a ticket with some changes."""
    return JoinRequest.to(msgspec.structs.replace(TICKET, **changes), "box", key)


def reply(signer: NodeKey = FOUNDER, **changes: object) -> JoinReply:
    made = JoinReply(
        certificate=answer()[1].encode(),
        root=ROOT.id.ed25519,
        ipv4_network=str(NETWORK),
        keys=RING.offer(NOW),
        revocations=(REVOKED.encode(),),
        members=(Member(FOUNDED, ("192.0.2.1:51820",)).info(),),
    )
    return msgspec.structs.replace(made, **changes).signed(signer)


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
        (request(NEWCOMER, secret=bytes(16)), NOW, "not known"),
        (request(NEWCOMER, invite_id=bytes(8)), NOW, "not known"),
        (msgspec.structs.replace(REQUEST, node=b"o" * 32), NOW, "not known"),
        (msgspec.structs.replace(REQUEST, name="other"), NOW, "not known"),
        (msgspec.structs.replace(REQUEST, issuer=b"o" * 32), NOW, "not known"),
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
        join.answer(request(other), book, SIGNER, [FOUNDED, certificate], NETWORK, NOW)


def test_a_request_is_of_the_node_that_it_names_and_for_one_mesh() -> None:
    join.check_request(REQUEST, TICKET.mesh_id)
    with pytest.raises(MembershipError, match="for another mesh"):
        join.check_request(REQUEST, b"o" * 32)
    other = NodeKey(b"o" * 32)
    for stolen in (
        msgspec.structs.replace(REQUEST, node=other.id.ed25519),
        msgspec.structs.replace(request(other), node=NEWCOMER.id.ed25519),
        msgspec.structs.replace(REQUEST, node_signature=REQUEST.invite_signature),
        msgspec.structs.replace(REQUEST, name="pi"),
        msgspec.structs.replace(REQUEST, node=bytes(31) + b"\xff"),  # no point of the curve
    ):
        with pytest.raises(MembershipError, match="not signed by the node that it names"):
            join.check_request(stolen, TICKET.mesh_id)


def test_a_bad_name_takes_no_use() -> None:
    with pytest.raises(UsageError, match="cannot be a name"):
        answer(JoinRequest.to(TICKET, "No Name", NEWCOMER))
    assert BOOK.invites[0].uses_left == 1


def test_messages_survive() -> None:
    assert JoinRequest.decode(REQUEST.encode()) == REQUEST
    assert JoinReply.decode(reply().encode()) == reply()


def test_the_request_does_not_hold_the_secret() -> None:
    assert SECRET not in REQUEST.encode()
    assert TICKET.invite_key.seed not in REQUEST.encode()


def test_the_keys_in_a_reply_are_not_shown() -> None:
    assert "kkkk" not in repr(reply())


@settings(max_examples=150)
@given(st.data())
def test_no_flipped_byte_of_a_request_lets_anyone_in(data: st.DataObject) -> None:
    raw = bytearray(REQUEST.encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((MembershipError, PeerError)):
        changed = JoinRequest.decode(bytes(raw))
        join.check_request(changed, TICKET.mesh_id)
        answer(changed)


@settings(max_examples=60)
@given(st.data())
def test_no_flipped_byte_of_a_reply_is_believed(data: st.DataObject) -> None:
    raw = bytearray(reply().encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((MembershipError, PeerError)):
        check(JoinReply.decode(bytes(raw)))


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
    assert raw.count(b"box") == 1
    with pytest.raises(PeerError, match="damaged"):
        JoinRequest.decode(raw.replace(b"box", b"\xff\xfeb"))


def test_a_reply_from_another_mesh_is_refused() -> None:
    other = NodeKey(b"o" * 32)
    foreign = Signer.of_root(other)
    certificate = issuer.issue(foreign, [], NEWCOMER.id, "box", ["worker"], [], NETWORK, NOW)
    forged = reply(root=other.id.ed25519, certificate=certificate.encode())
    with pytest.raises(MembershipError, match="another mesh than the ticket's"):
        check(forged)


def test_a_reply_with_a_certificate_of_another_root_is_refused() -> None:
    other = NodeKey(b"o" * 32)
    foreign = Signer.of_root(other)
    certificate = issuer.issue(foreign, [], NEWCOMER.id, "box", ["worker"], [], NETWORK, NOW)
    with pytest.raises(MembershipError, match="is for another mesh"):
        check(reply(certificate=certificate.encode()))


def test_a_reply_that_was_changed_on_its_way_is_refused() -> None:
    for changed in (
        msgspec.structs.replace(reply(), ipv4_network="10.0.0.0/8"),
        msgspec.structs.replace(reply(), members=()),
        msgspec.structs.replace(reply(), keys=(OfferedKey(b"o" * 32, b""),)),
        reply(NEWCOMER),
    ):
        with pytest.raises(MembershipError, match="not from the ticket's issuer"):
            check(changed)


def test_a_reply_brings_the_network_keys_and_who_is_out() -> None:
    assert join.known_keys(reply(), NOW) == RING
    assert join.known_revocations(reply(), NOW) == Revocations.of([REVOKED])
    nonsense = (b"junk", REVOKED.encode()[:-1], REVOKED.encode())
    assert join.known_revocations(reply(revocations=nonsense), NOW) == Revocations.of([REVOKED])
    with pytest.raises(MembershipError, match="no network key"):
        join.known_keys(reply(keys=()), NOW)
    with pytest.raises(MembershipError, match="key change is damaged"):
        join.known_keys(reply(keys=(OfferedKey(b"k" * 32, b"junk"),)), NOW)


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
    theirs = Signer.of_root(other)
    foreign = issuer.issue(theirs, [], other.id, "evil", ["worker"], [], NETWORK, NOW)
    expired = issuer.issue(SIGNER, [], other.id, "old", ["worker"], [], NETWORK, NOW - 9999, 3600)
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
