"""Revocation lists: who may say who is out, and nobody takes it back."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import MembershipError, UsageError
from agent.identity.addresses import DEFAULT_IPV4_NETWORK
from agent.identity.keys import NodeId, NodeKey
from agent.membership import grant as grants
from agent.membership import issuer, revocation
from agent.membership.certificate import Certificate
from agent.membership.grant import Signer
from agent.membership.revocation import KEEP_S, Have, Revocation, RevocationList, Revocations

ROOT = NodeKey(b"r" * 32)
ISSUER, OTHER, LEAVER = NodeKey(b"i" * 32), NodeKey(b"o" * 32), NodeKey(b"l" * 32)
NOW = 1_800_000_000.0
BY_ROOT = Signer.of_root(ROOT)


def granted(key: NodeKey, after_s: int = 10**7) -> Signer:
    return Signer(key, ROOT.id, grants.sign(ROOT, key.id, int(NOW) - 100, int(NOW) + after_s))


def certificate(key: NodeKey, signer: Signer = BY_ROOT) -> Certificate:
    return issuer.issue(signer, [], key.id, "pi", ["worker"], [], DEFAULT_IPV4_NETWORK, NOW)


def entry(number: int, at: float = NOW, reason: str = "") -> Revocation:
    return Revocation(NodeKey(number.to_bytes(32, "big")).id.ed25519, int(at), reason)


def made(*numbers: int, signer: Signer | None = None, number: int = 1) -> RevocationList:
    return revocation.sign(signer or granted(ISSUER), number, map(entry, numbers))


def take(known: Revocations, new: RevocationList, now: float = NOW) -> Revocations:
    return known.take(RevocationList.decode(new.encode()), ROOT.id, now)


def nodes(known: Revocations) -> set[NodeId]:
    return set(known.excluded)


def of(*numbers: int) -> set[NodeId]:
    return {NodeId(entry(number).node) for number in numbers}


def test_the_union_of_all_signers_counts() -> None:
    known = take(Revocations(), made(1, 2))
    known = take(known, made(2, 3, signer=granted(OTHER)))
    known = take(known, made(4, signer=BY_ROOT))
    assert nodes(known) == of(1, 2, 3, 4)
    assert len(known.lists) == 3
    again = take(known, made(1, 2))
    assert again is known


def test_a_higher_number_replaces_a_lower_one_and_keeps_what_it_said() -> None:
    known = take(Revocations(), made(1, number=2))
    assert take(known, made(1, 2, number=1)) is known
    assert take(known, made(1, 2, number=2)) is known
    assert nodes(take(known, made(1, 2, number=9))) == of(1, 2)
    with pytest.raises(MembershipError, match="takes back what an earlier one said"):
        take(known, made(2, number=3))


def test_what_is_outdated_may_go() -> None:
    known = take(Revocations(), made(1))
    later = NOW + KEEP_S + 1
    signer = granted(ISSUER, 10**9)
    fresh = revocation.sign(signer, 2, [entry(2, later)])
    assert nodes(take(known, fresh, later)) == of(2)
    with pytest.raises(MembershipError, match="takes back"):
        take(known, revocation.sign(signer, 2, [entry(2)]), later - 2)
    lasting = take(Revocations(), made(1, signer=signer))
    assert lasting.pruned(later) is lasting  # its signer may sign: others remember the number
    gone = NOW + 10**7 + KEEP_S
    assert known.pruned(gone).lists == {}
    assert known.pruned(NOW) is known


def test_an_issuers_list_grows() -> None:
    signer = granted(ISSUER)
    known, first = Revocations().with_entries(signer, [entry(1)], NOW)
    assert first is not None and first.number == 1
    known, second = known.with_entries(signer, [entry(1, NOW + 5), entry(2)], NOW)
    assert second is not None and second.number == 2
    assert [e.at for e in second.entries] == [int(NOW)] * 2  # the first word counts
    same, nothing = known.with_entries(signer, [entry(2)], NOW)
    assert nothing is None and same is known
    _, above = known.with_entries(signer, [entry(2)], NOW, above=7)
    assert above is not None and above.number == 8
    assert take(Revocations(), second).lists == known.lists
    too_many = map(entry, range(10, revocation.MAX_ENTRIES + 10))
    with pytest.raises(MembershipError, match="holds 4096 nodes at most"):
        known.with_entries(signer, too_many, NOW)


def test_a_farewell_is_a_nodes_word_about_itself() -> None:
    word = revocation.farewell(LEAVER, certificate(LEAVER, granted(ISSUER)), NOW)
    known = take(Revocations(), word)
    out = known.excluded[LEAVER.id]
    assert (out.left, out.reason, out.at) == (True, "left", int(NOW))
    # an issuer that leaves has a list of its own beside it
    both = take(take(known, made(1, signer=granted(LEAVER))), made(2))
    assert nodes(both) == {LEAVER.id} | of(1, 2)
    assert both.lists[(LEAVER.id.ed25519, True)] == word
    # and being revoked counts before having left
    revoked = take(both, revocation.sign(BY_ROOT, 1, [Revocation(LEAVER.id.ed25519, 5, "stolen")]))
    assert not revoked.excluded[LEAVER.id].left


def forge(key: NodeKey, like: RevocationList, **changes: object) -> RevocationList:
    """A list with any fields, properly signed by `key`, which it names."""
    changed = msgspec.structs.replace(like, signer=key.id.ed25519, **changes)
    return msgspec.structs.replace(changed, signature=key.sign(changed.signed_bytes()))


def test_who_may_not_say_who_is_out() -> None:
    farewell = revocation.farewell(LEAVER, certificate(LEAVER), NOW)
    foreign = Signer.of_root(OTHER)
    for bad, words in (
        (forge(LEAVER, made(1), grant=None), "has no grant"),
        (forge(LEAVER, made(1)), "grant that the mesh's root did not give"),
        (forge(ROOT, made(1)), "root's own and carries a grant"),
        (made(1, signer=foreign), "for another mesh"),
        (forge(OTHER, farewell, entries=farewell.entries), "names others than itself"),
        (forge(LEAVER, farewell, entries=(entry(1),)), "names others than itself"),
        (forge(LEAVER, farewell, entries=()), "names others than itself"),
        (forge(LEAVER, farewell, grant=granted(LEAVER).grant), "names others than itself"),
        (forge(LEAVER, farewell, certificate=certificate(OTHER).encode()), "names others"),
        (forge(LEAVER, farewell, certificate=b"junk"), "certificate is damaged"),
        (
            forge(LEAVER, farewell, certificate=certificate(LEAVER, foreign).encode()),
            "never was a member",
        ),
        (msgspec.structs.replace(made(1), signature=bytes(64)), "bad signature"),
    ):
        with pytest.raises(MembershipError, match=words):
            take(Revocations(), bad)


def test_a_revoked_or_retired_issuer_persuades_nobody_new() -> None:
    known = take(Revocations(), made(1))
    by_root = revocation.sign(BY_ROOT, 1, [Revocation(ISSUER.id.ed25519, int(NOW), "stolen")])
    known = take(known, by_root)
    assert nodes(known) == of(1) | {ISSUER.id}  # what it had said stays
    assert known.revoked_signers.keys() == {entry(1).node, ISSUER.id.ed25519}
    for number, before in ((2, known), (1, take(Revocations(), by_root))):
        with pytest.raises(MembershipError, match="itself revoked"):
            take(before, made(1, 2, number=number))
    with pytest.raises(MembershipError, match="whose grant is over"):
        take(Revocations(), made(1, signer=granted(ISSUER, 100)), NOW + 500)


def test_nobody_is_put_out_in_the_future() -> None:
    ahead = revocation.sign(BY_ROOT, 1, [entry(1, NOW + 301)])
    with pytest.raises(MembershipError, match="speaks of the future"):
        take(Revocations(), ahead)
    assert nodes(take(Revocations(), ahead, NOW + 2)) == of(1)


def test_what_must_be_taken_over() -> None:
    soon = granted(OTHER, revocation.ADOPT_BEFORE_S - 10)
    known = Revocations.of([
        made(1), made(2, signer=soon), made(3, signer=BY_ROOT),
        revocation.farewell(LEAVER, certificate(LEAVER), NOW),
    ])  # fmt: skip
    issuers = [ISSUER.id.ed25519, OTHER.id.ed25519]
    assert known.orphaned(b"me" * 16, issuers, NOW) == [entry(2)]
    assert known.orphaned(OTHER.id.ed25519, issuers, NOW) == []
    assert known.orphaned(b"me" * 16, [], NOW) == [entry(1), entry(2)]
    assert known.orphaned(b"me" * 16, [], NOW + KEEP_S + 1) == []


def test_what_one_lacks_is_known_by_number_and_digest() -> None:
    known = Revocations.of([made(1, number=2), made(2, signer=granted(OTHER))])
    assert known.lacking(known.have()) == ()
    assert set(known.lacking(())) == set(known.lists.values())
    mine = made(1, number=2).what
    assert known.lacking((mine,)) == (made(2, signer=granted(OTHER)),)
    theirs = made(2, signer=granted(OTHER)).what
    older = msgspec.structs.replace(mine, number=1)
    other_form = msgspec.structs.replace(mine, digest=bytes(16))
    newer = msgspec.structs.replace(mine, number=3)
    for have, lacks in ((older, 1), (other_form, 1), (newer, 0)):
        assert len(known.lacking((have, theirs))) == lacks


@pytest.mark.parametrize(
    ("text", "clean"), [("", ""), (" lost\n in\x1b[31m a\ttrain ", "lost in [31m a train")]
)
def test_reasons_are_one_line(text: str, clean: str) -> None:
    assert revocation.clean_reason(text) == clean


def test_a_long_reason_is_refused() -> None:
    with pytest.raises(UsageError, match="has 101 characters"):
        revocation.clean_reason("x" * 101)


@pytest.mark.parametrize(
    "entries",
    [
        (entry(2), entry(1)),
        (entry(1), entry(1)),
        (Revocation(b"x" * 32, 1, "a\nb"),),
        (Revocation(b"x" * 32, 1, "a\x1b[2J"),),
    ],
)
def test_other_spellings_are_damage(entries: tuple[Revocation, ...]) -> None:
    ordered = sorted(entries, key=lambda e: e.node)
    bad = msgspec.structs.replace(made(1), entries=entries)
    with pytest.raises(MembershipError, match="damaged"):
        RevocationList.decode(bad.encode())
    assert ordered != list(entries) or len(set(entries)) != len(entries) or entries[0].reason


@settings(max_examples=100)
@given(st.data())
def test_no_flipped_byte_is_believed(data: st.DataObject) -> None:
    word = revocation.farewell(LEAVER, certificate(LEAVER, granted(ISSUER)), NOW)
    raw = bytearray(data.draw(st.sampled_from([word, made(1, 2)])).encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MembershipError):
        Revocations().take(RevocationList.decode(bytes(raw)), ROOT.id, NOW)


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_membership_error(raw: bytes) -> None:
    with pytest.raises(MembershipError):
        RevocationList.decode(raw)


@settings(max_examples=40)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 8), st.booleans()), min_size=1, max_size=20
    ),
    order=st.randoms(use_true_random=False),
)
def test_in_whatever_order_lists_come_everyone_ends_alike(
    steps: list[tuple[int, int, bool]], order: object
) -> None:
    """Issuers revoke; a member hears some at once, another everything in disorder at the end."""
    signers = [granted(NodeKey(bytes([n]) * 32)) for n in (71, 72, 73)]
    own = [Revocations() for _ in signers]
    told: list[RevocationList] = []
    early, late = Revocations(), Revocations()
    for who, whom, heard in steps:
        own[who], new = own[who].with_entries(signers[who], [entry(whom)], NOW)
        if new is not None:
            told.append(new)
            early = take(early, new) if heard else early
    for one in told:
        early = take(early, one)
    shuffled = list(told)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    for one in shuffled:
        late = take(late, one)
    assert early.lists == late.lists
    assert nodes(late) == of(*(whom for _, whom, _ in steps))
    assert {have.number for have in late.have()} <= set(range(1, 9))
    assert all(isinstance(have, Have) for have in late.have())
