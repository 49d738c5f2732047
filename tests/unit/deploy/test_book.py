"""The book of wishes: signed, the same everywhere in the end, and closed to who may not deploy."""

import itertools
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.deploy import book as books
from agent.deploy.book import DeploymentBook
from agent.deploy.wish import Wish, check_name
from agent.errors import MembershipError, PeerError, UsageError
from agent.identity.keys import NodeId, NodeKey

MESH = bytes(range(32))
KEYS = [NodeKey(bytes([n]) * 32) for n in range(1, 5)]
A, B = KEYS[:2]
NOW = 1_800_000_000.0
OLD_WISH = bytes.fromhex(
    "9c01a16daa636f7665792d6d696e69c4000240c4208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d9412"
    "1bf3748801b40f6f5cc4208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c01"
    "ce6b49d200c2c440c5e2c2d0f2559a97664f754d7f570b73f3d626c8816680b1fd612fbfe38923f3cc026b34"
    "be44b44e2d275684c4f6ccb48d43a33c8ea532c975828d84bd74bb06"
)


def add(book: DeploymentBook, key: NodeKey = A, name: str = "m", **changes: Any) -> Wish:
    fields: dict[str, Any] = {"model": "covey-mini", "nodes": 2, "context": 64,
                              "prefer": key.id.ed25519}  # fmt: skip
    wish = Wish(name=name, author=key.id.ed25519, generation=1, at=0, **fields | changes)
    return book.add(key, NOW, wish)


def anyone(_: NodeId) -> bool:
    return True


def test_a_wish_is_read_as_it_was_signed_and_no_other_way() -> None:
    wish = add(DeploymentBook(MESH), source=B.id.ed25519)
    assert Wish.decode(wish.encode()) == wish
    wish.check(MESH)
    assert (wish.author_id, wish.source_id, wish.prefer_id) == (A.id, B.id, A.id)
    with pytest.raises(PeerError, match="not signed"):
        wish.check(bytes(32))
    for changes in ({"model": "/other"}, {"generation": 2}, {"removed": True}, {"nodes": 3},
                    {"author": B.id.ed25519}, {"prefer": b""}, {"at": 1},
                    {"engine": "rpc"}):  # fmt: skip
        with pytest.raises(PeerError, match="not signed"):
            msgspec.structs.replace(wish, **changes).check(MESH)
    for raw in (b"", wish.encode()[:-1], wish.encode() + b"\0", b"\x93\x01\xa1m\xa1x"):
        with pytest.raises(PeerError, match="damaged"):
            Wish.decode(raw)
    with pytest.raises(PeerError, match="newer version"):
        Wish.decode(msgspec.structs.replace(wish, version=2).encode())


def test_a_wish_from_before_there_were_engines_and_drafts_has_the_bytes_that_it_had() -> None:
    """`OLD_WISH` was signed, and written, by the code before that."""
    wish = Wish.decode(OLD_WISH)
    wish.check(MESH)
    assert (wish.name, wish.engine, wish.draft, wish.context) == ("m", "ring", "", 64)
    assert wish.encode() == OLD_WISH
    assert add(DeploymentBook(MESH)) == wish


def test_what_a_wish_says_of_its_engine_is_signed() -> None:
    wish = add(DeploymentBook(MESH), engine="rpc")
    wish.check(MESH)
    assert Wish.decode(wish.encode()) == wish
    with pytest.raises(PeerError, match="not signed"):
        msgspec.structs.replace(wish, engine="ring").check(MESH)
    with pytest.raises(PeerError, match="damaged"):  # only one way to write the default
        ring = msgspec.structs.replace(wish, engine="ring")
        Wish.decode(msgspec.msgpack.encode(msgspec.structs.astuple(ring)))
    with pytest.raises(PeerError, match="damaged"):
        Wish.decode(msgspec.structs.replace(wish, engine="mpi").encode())  # type: ignore[arg-type]


def test_a_draft_model_is_signed_and_stays_when_a_wish_is_signed_anew() -> None:
    book = DeploymentBook(MESH)
    wish = add(book, draft="/small.gguf")
    wish.check(MESH)
    assert Wish.decode(wish.encode()) == wish
    for draft in ("", "/other.gguf"):
        with pytest.raises(PeerError, match="not signed"):
            msgspec.structs.replace(wish, draft=draft).check(MESH)
    # There is only one way to write that there is none.
    plain = msgspec.structs.replace(wish, draft="")
    with pytest.raises(PeerError, match="damaged"):
        Wish.decode(msgspec.msgpack.encode(msgspec.structs.astuple(plain)))
    adopted = book.adopt(B, NOW, "m")
    adopted.check(MESH)
    assert (adopted.draft, adopted.author_id) == ("/small.gguf", B.id)


def test_stored_models_are_named_by_their_ids() -> None:
    ids = "ab" * 32, "cd" * 32
    wish = add(DeploymentBook(MESH), model="mini", model_id=ids[0], draft="mi", draft_id=ids[1])
    wish.check(MESH)
    assert Wish.decode(wish.encode()) == wish
    assert (wish.stored_ids, wish.source_id) == (ids, None)
    assert add(DeploymentBook(MESH)).stored_ids == ()
    with pytest.raises(PeerError, match="not signed"):
        msgspec.structs.replace(wish, model_id=ids[1]).check(MESH)
    for wrong in ("ab", "AB" * 32, "ab" * 32 + "\n", "../" + "a" * 61):
        with pytest.raises(PeerError, match="damaged"):
            Wish.decode(msgspec.structs.replace(wish, model_id=wrong).encode())


@pytest.mark.parametrize("name", ["", "x" * 65, "a/b", "a\nb", "a\x1b[31m"])
def test_names_that_cannot_be_shown_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name"):
        check_name(name)
    if name:
        wish = Wish(name=name, model="m", author=bytes(32), generation=1, at=1)
        with pytest.raises(PeerError):
            wish.signed_by(A, MESH).check(MESH)


def test_a_name_is_taken_until_it_is_removed() -> None:
    book = DeploymentBook(MESH)
    first = add(book)
    with pytest.raises(UsageError, match="already deployed"):
        add(book, B)
    gone = book.remove(B, NOW, "m")
    assert (gone.generation, gone.removed, gone.author_id) == (2, True, B.id)
    assert book.wishes() == ()
    assert book.entries() == (gone,)
    with pytest.raises(UsageError, match="not deployed"):
        book.remove(B, NOW, "m")
    again = add(book)
    assert again.generation == 3 > first.generation
    assert book.wishes() == (again,)


def test_only_a_higher_rank_counts_and_only_of_who_may_deploy() -> None:
    here, there = DeploymentBook(MESH), DeploymentBook(MESH)
    first = add(there)
    with pytest.raises(MembershipError, match="may not deploy"):
        here.merge(first, lambda node: node != A.id, NOW)
    assert here.merge(first, anyone, NOW)
    assert not here.merge(first, anyone, NOW)
    second = there.remove(B, NOW, "m")
    assert here.merge(second, anyone, NOW)
    assert not here.merge(first, anyone, NOW)
    assert here.find("m") == second
    forged = msgspec.structs.replace(second, generation=9, removed=False)
    with pytest.raises(PeerError, match="not signed"):
        here.merge(forged, anyone, NOW)
    assert here.find("m") == second


def test_times_far_ahead_and_floods_are_refused() -> None:
    here, there = DeploymentBook(MESH), DeploymentBook(MESH)
    with pytest.raises(PeerError, match="in the future"):
        here.merge(add(there), anyone, NOW - 2 * 86400)
    for number in range(books.MAX_BY_AUTHOR):
        here.merge(add(there, name=f"m{number}"), anyone, NOW)
    with pytest.raises(MembershipError, match="too many"):
        here.merge(add(there, name="one-more"), anyone, NOW)
    assert here.merge(there.remove(A, NOW, "m0"), anyone, NOW), "what is there may still change"
    assert here.merge(add(there, B, name="other"), anyone, NOW)


def test_marks_of_what_was_removed_go_after_a_month_and_do_not_come_back() -> None:
    book, late = DeploymentBook(MESH), DeploymentBook(MESH)
    add(book)
    gone = book.remove(A, NOW, "m")
    assert not book.prune(NOW + books.REMOVED_KEPT_S - 1)
    assert book.prune(NOW + books.REMOVED_KEPT_S + 1)
    assert book.entries() == ()
    assert not late.merge(gone, anyone, NOW + books.REMOVED_KEPT_S + 1)


def test_an_orphan_is_the_same_wish_of_another_author() -> None:
    book = DeploymentBook(MESH)
    before = add(book, prefer=B.id.ed25519)
    after = book.adopt(B, NOW + 5, "m")
    after.check(MESH)
    assert (after.author_id, after.generation) == (B.id, 2)
    same = ("name", "model", "nodes", "context", "prefer", "source", "removed")
    assert all(getattr(after, field) == getattr(before, field) for field in same)


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(0, 2**32), st.integers(0, 25))
def test_books_that_exchange_become_the_same(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    shelf = [DeploymentBook(MESH) for _ in KEYS]
    for _ in range(steps):
        index = rng.randrange(len(KEYS))
        name = rng.choice("abc")
        known = shelf[index].find(name)
        if known is None or known.removed:
            add(shelf[index], KEYS[index], name)
        else:
            shelf[index].remove(KEYS[index], NOW, name)
        if rng.random() < 0.3:
            exchange(*rng.sample(shelf, 2))
    for one, other in itertools.permutations(shelf, 2):
        exchange(one, other)
    for one, other in itertools.permutations(shelf, 2):
        exchange(one, other)
    assert len({book.digest() for book in shelf}) == 1
    assert len({book.entries() for book in shelf}) == 1


def exchange(asks: DeploymentBook, answers: DeploymentBook) -> None:
    if asks.digest() == answers.digest():
        assert asks.compare(answers.summary()) == ([], [])
        return
    newer, wanted = asks.compare(answers.summary())
    given_back = [answers.find(name) for name in wanted]
    for wish in newer:
        answers.merge(wish, anyone, NOW)
    for found in given_back:
        assert found is not None
        asks.merge(found, anyone, NOW)


def test_rings_are_signed_and_one_alone_leaves_no_trace() -> None:
    wish = add(DeploymentBook(MESH), rings=3, heads=(B.id.ed25519, b""))
    wish.check(MESH)
    assert Wish.decode(wish.encode()) == wish
    assert wish.keys == ("m", "m/2", "m/3")
    assert [wish.head_of(n) for n in (1, 2, 3)] == [A.id, B.id, None]
    for changes in ({"rings": 2}, {"heads": ()}):
        with pytest.raises(PeerError, match="not signed"):
            msgspec.structs.replace(wish, **changes).check(MESH)
    odd = add(DeploymentBook(MESH), rings=2, heads=(b"x",))
    with pytest.raises(PeerError, match="names a node that is none"):
        odd.check(MESH)
    long = add(DeploymentBook(MESH), name="n" * 64, rings=2)
    with pytest.raises(PeerError, match="of 2 rings"):
        long.check(MESH)
    assert add(DeploymentBook(MESH), rings=1, heads=()).encode() == OLD_WISH
