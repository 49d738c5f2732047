"""Invites: never more nodes than uses, and each refusal with its reason."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import TicketError, UsageError
from agent.identity.keys import NodeId
from agent.membership import ticket
from agent.membership.invites import KEEP_EXPIRED_S, Invite, InviteBook

NOW = 1_800_000_000.0
RANDOM = random.Random(1)


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def redeem(
    book: InviteBook, invite_id: bytes, secret: bytes, who: NodeId, now: float
) -> tuple[InviteBook, Invite]:
    """What a newcomer with this secret achieves: it signs a message that names it."""
    message = b"let me in: " + who.ed25519
    signature = ticket.invite_key(secret).sign(message)
    return book.redeem(invite_id, message, signature, who, now)


def invited(uses: int = 1, ttl_s: float = 3600) -> tuple[InviteBook, Invite, bytes]:
    return InviteBook().create(RANDOM.randbytes, NOW, ttl_s=ttl_s, uses=uses)


def test_a_new_invite() -> None:
    book, invite, secret = InviteBook().create(
        RANDOM.randbytes, NOW, ttl_s=60, uses=2, roles=["relay", "worker"], tags=["b", "a"]
    )
    assert book.invites == (invite,)
    assert (len(invite.id), len(secret)) == (8, 16)
    assert invite.uses_left == 2
    assert invite.not_after == int(NOW) + 60
    assert invite.roles == ("worker", "relay")
    assert invite.tags == ("a", "b")


def test_what_is_stored_redeems_nothing() -> None:
    book, invite, secret = invited()
    stored = msgspec.msgpack.encode(book)
    assert secret not in stored
    assert ticket.invite_key(secret).seed not in stored
    assert ticket.invite_key(secret).id.ed25519 == invite.key


def test_a_signature_is_good_for_its_message_alone() -> None:
    book, invite, secret = invited()
    signature = ticket.invite_key(secret).sign(b"let 1 in")
    with pytest.raises(TicketError, match="not known"):
        book.redeem(invite.id, b"let 2 in", signature, node(2), NOW)
    book.redeem(invite.id, b"let 1 in", signature, node(1), NOW)


def test_one_use_lets_one_node_in() -> None:
    book, invite, secret = invited()
    book, redeemed = redeem(book, invite.id, secret, node(1), NOW)
    assert redeemed.uses_left == 0
    assert redeemed.redeemed_by == (node(1).ed25519,)
    with pytest.raises(TicketError, match="this ticket is used up"):
        redeem(book, invite.id, secret, node(2), NOW)


def test_a_node_whose_answer_was_lost_asks_again() -> None:
    book, invite, secret = invited(uses=2)
    first, _ = redeem(book, invite.id, secret, node(1), NOW)
    again, redeemed = redeem(first, invite.id, secret, node(1), NOW + 60)
    assert again == first
    assert redeemed.uses_left == 1


def test_the_wrong_secret_and_the_wrong_id_read_alike() -> None:
    book, invite, secret = invited()
    messages = []
    for invite_id, attempt in ((invite.id, bytes(16)), (bytes(8), secret), (b"", b"")):
        with pytest.raises(TicketError) as caught:
            redeem(book, invite_id, attempt, node(1), NOW)
        messages.append(caught.value.line())
    assert len(set(messages)) == 1
    assert "not known" in messages[0]


def test_a_secret_opens_only_its_own_invite() -> None:
    book, one, _ = invited()
    book, _, two_secret = book.create(RANDOM.randbytes, NOW, ttl_s=60)
    with pytest.raises(TicketError, match="not known"):
        redeem(book, one.id, two_secret, node(1), NOW)


def test_an_expired_invite_says_how_long_ago() -> None:
    book, invite, secret = invited(ttl_s=60)
    redeem(book, invite.id, secret, node(1), NOW + 60)
    with pytest.raises(TicketError, match="this ticket expired 5 minutes ago"):
        redeem(book, invite.id, secret, node(1), NOW + 60 + 301)


def test_who_does_not_know_the_secret_is_not_told_of_the_expiry() -> None:
    book, invite, _ = invited(ttl_s=60)
    with pytest.raises(TicketError, match="not known"):
        redeem(book, invite.id, bytes(16), node(1), NOW + 1000)


def test_time_ends_it_for_those_who_redeemed_it_too() -> None:
    book, invite, secret = invited(ttl_s=60)
    book, _ = redeem(book, invite.id, secret, node(1), NOW)
    with pytest.raises(TicketError, match="expired"):
        redeem(book, invite.id, secret, node(1), NOW + 100)


def test_redeeming_one_leaves_the_others() -> None:
    book, one, secret = invited()
    book, two, _ = book.create(RANDOM.randbytes, NOW, ttl_s=60)
    book, redeemed = redeem(book, one.id, secret, node(1), NOW)
    assert book.invites == (redeemed, two)


def test_long_expired_invites_leave_the_book() -> None:
    book, old, _ = invited(ttl_s=60)
    book, recent, _ = book.create(RANDOM.randbytes, NOW + KEEP_EXPIRED_S, ttl_s=60)
    assert old in book.invites
    book, newest, _ = book.create(RANDOM.randbytes, NOW + KEEP_EXPIRED_S + 62, ttl_s=60)
    assert book.invites == (recent, newest)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"uses": 0}, "0 uses"),
        ({"uses": 1001}, "1001 uses"),
        ({"ttl_s": 0}, "last 0 seconds"),
        ({"ttl_s": -5}, "last -5 seconds"),
        ({"ttl_s": 366 * 86400}, "cannot last"),
        ({"ttl_s": float("nan")}, "cannot last"),
        ({"roles": ["king"]}, "is not a role"),
        ({"roles": []}, "needs a role"),
        ({"tags": ["A B"]}, "cannot be a tag"),
        ({"tags": [str(number) for number in range(9)]}, "9 tags are too many"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        InviteBook().create(RANDOM.randbytes, NOW, **{"ttl_s": 60, **values})  # type: ignore[arg-type]


@settings(max_examples=60)
@given(
    uses=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    attempts=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 8), st.booleans(), st.integers(0, 90)),
        max_size=40,
    ),
)
def test_never_more_nodes_than_uses(
    uses: list[int], attempts: list[tuple[int, int, bool, int]]
) -> None:
    """Any order of invites, nodes, right and wrong secrets, and times around the end at 60 s."""
    book = InviteBook()
    made: list[tuple[Invite, bytes]] = []
    for count in uses:
        book, invite, secret = book.create(RANDOM.randbytes, NOW, ttl_s=60, uses=count)
        made.append((invite, secret))
    let_in: list[set[int]] = [set() for _ in uses]
    for which, who, honest, after_s in attempts:
        which %= len(uses)
        invite, secret = made[which]
        room = len(let_in[which]) < uses[which]
        should = honest and after_s <= 60 and (room or who in let_in[which])
        try:
            book, redeemed = redeem(
                book, invite.id, secret if honest else bytes(16), node(who), NOW + after_s
            )
        except TicketError:
            assert not should
            continue
        assert should
        let_in[which].add(who)
        assert redeemed.uses_left == uses[which] - len(let_in[which])
        assert set(redeemed.redeemed_by) == {node(who).ed25519 for who in let_in[which]}
    assert all(len(nodes) <= count for nodes, count in zip(let_in, uses, strict=True))
