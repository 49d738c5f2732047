from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.discovery import store as store_module
from agent.discovery.record import Signed, service_key, sign
from agent.discovery.store import Put, RecordStore, digests
from agent.identity.keys import NodeKey

if TYPE_CHECKING:
    from conftest import Root

NOW = 1_800_000_000.0
KEYS = [NodeKey(bytes([n]) * 32) for n in range(1, 7)]
SALT = b"saltsalt"


@pytest.fixture(scope="module")
def home(make_root: Any) -> Root:
    return make_root()


@pytest.fixture
def kept(home: Root) -> RecordStore:
    return RecordStore(home.verifier())


def word(root: Root, node: int, seq: int, expiry: float = NOW + 60, name: str = "s") -> Signed:
    return sign(KEYS[node], root.mesh_id, root.service(KEYS[node], name, seq, expiry))


def seqs(store: RecordStore, root: Root, now: float = NOW, name: str = "s") -> dict[int, int]:
    found = store.records(service_key(root.mesh_id, name), now)
    return {next(i for i, k in enumerate(KEYS) if k.id == s.record.id): s.record.seq for s in found}


def test_newest_wins_whatever_the_order(home: Root, kept: RecordStore) -> None:
    old, new = word(home, 0, 1), word(home, 0, 2)
    assert kept.put(new.key, new.raw, NOW) == Put(True, 2)
    assert kept.put(old.key, old.raw, NOW) == Put(False, 2)
    assert kept.put(new.key, new.raw, NOW) == Put(True, 2)
    assert seqs(kept, home) == {0: 2}


def test_a_second_word_of_the_same_sequence_is_refused(home: Root, kept: RecordStore) -> None:
    first, second = word(home, 0, 1), word(home, 0, 1, NOW + 61)
    assert kept.put(first.key, first.raw, NOW).accepted
    assert not kept.put(second.key, second.raw, NOW).accepted


def test_an_expired_record_is_gone_and_blocks_nothing(home: Root, kept: RecordStore) -> None:
    high, low = word(home, 0, 9, NOW + 10), word(home, 0, 3, NOW + 60)
    kept.put(high.key, high.raw, NOW)
    assert seqs(kept, home, NOW + 9) == {0: 9}
    assert seqs(kept, home, NOW + 10) == {}
    assert kept.put(low.key, low.raw, NOW + 10) == Put(True, 3)
    assert len(kept) == 1


def test_purge_forgets_and_counts(home: Root, kept: RecordStore) -> None:
    for node in range(3):
        signed = word(home, node, 1, NOW + 10 + node)
        kept.put(signed.key, signed.raw, NOW)
    assert kept.purge(NOW + 11) == 2
    assert len(kept) == 1
    assert kept.purge(NOW + 100) == 1
    assert kept._sets == {}
    assert not kept._per_node


def test_a_revoked_nodes_records_are_neither_given_nor_taken(make_root: Any) -> None:
    root = make_root()
    store, signed = RecordStore(root.verifier()), word(root, 0, 1)
    store.put(signed.key, signed.raw, NOW)
    root.revoked.add(KEYS[0].id)
    assert store.records(signed.key, NOW + 3) == []
    newer = word(root, 0, 2)
    assert not store.put(newer.key, newer.raw, NOW + 3).accepted


def test_a_set_is_bounded_and_expired_places_are_given_away(
    home: Root, kept: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PROVIDERS_MAX", 3)
    for node in range(4):
        signed = word(home, node, 1, NOW + (10 if node == 0 else 60))
        assert kept.put(signed.key, signed.raw, NOW).accepted is (node < 3)
    late = word(home, 4, 1)
    assert kept.put(late.key, late.raw, NOW + 10).accepted
    assert seqs(kept, home, NOW + 10) == {1: 1, 2: 1, 4: 1}


def test_one_node_cannot_fill_the_store(
    home: Root, kept: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RECORDS_PER_NODE", 5)
    results = []
    for number in range(8):
        signed = word(home, 0, 1, name=f"s{number}")
        results.append(kept.put(signed.key, signed.raw, NOW).accepted)
    assert results == [True] * 5 + [False] * 3
    other = word(home, 1, 1)
    assert kept.put(other.key, other.raw, NOW).accepted


def test_the_whole_store_is_bounded(home: Root) -> None:
    kept = RecordStore(home.verifier(), records_max=2)
    for node in range(4):
        signed = word(home, node, 1)
        kept.put(signed.key, signed.raw, NOW)
    assert len(kept) == 2


def test_the_asker_gets_only_what_it_lacks(home: Root, kept: RecordStore) -> None:
    words = [word(home, node, 1) for node in range(5)]
    for signed in words:
        kept.put(signed.key, signed.raw, NOW)
    key, rng = words[0].key, random.Random(1)
    have = digests(words[:3], SALT)
    given_now, left_out, held = kept.missing(key, SALT, have, 10_000, NOW, rng)
    assert (sorted(given_now), left_out, held) == (sorted(s.raw for s in words[3:]), 0, 5)
    assert kept.missing(key, SALT, digests(words, SALT), 10_000, NOW, rng) == ([], 0, 5)
    assert kept.missing(bytes(20), SALT, b"", 10_000, NOW, rng) == ([], 0, 0)
    assert len(kept.missing(key, b"othersal", have, 10_000, NOW, rng)[0]) == 5


def test_an_answer_keeps_to_its_budget_and_varies(home: Root, kept: RecordStore) -> None:
    words = [word(home, node, 1) for node in range(6)]
    for signed in words:
        kept.put(signed.key, signed.raw, NOW)
    budget, rng = 2 * (len(words[0].raw) + 3), random.Random(1)
    parts = [kept.missing(words[0].key, SALT, b"", budget, NOW, rng) for _ in range(30)]
    assert {(len(raws), left_out) for raws, left_out, _ in parts} == {(2, 4)}
    assert {raw for raws, _, _ in parts for raw in raws} == {s.raw for s in words}


@settings(max_examples=40, deadline=None)
@given(
    puts=st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(1, 5), st.sampled_from(["good", "cut", "flip", "key"])
        ),
        max_size=12,
    ),
    data=st.data(),
)
def test_it_holds_the_newest_genuine_word_of_each(
    home: Root, puts: list[tuple[int, int, str]], data: st.DataObject
) -> None:
    store, expected = RecordStore(home.verifier()), dict[int, int]()
    for node, seq, fate in puts:
        signed = word(home, node, seq)
        key, raw = signed.key, signed.raw
        if fate == "good":
            expected[node] = max(seq, expected.get(node, 0))
        elif fate == "cut":
            raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
        elif fate == "flip":
            place = data.draw(st.integers(0, len(raw) - 1))
            raw = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        else:
            key = bytes(20)
        put = store.put(key, raw, NOW)
        assert fate == "good" or not put.accepted
    assert seqs(store, home) == expected
    assert len(store) == len(expected)


# -- the listing


def member(root: Root, node: int, seq: int = 1, port: int = 1) -> Signed:
    return sign(KEYS[node], root.mesh_id, root.member(KEYS[node], seq, NOW + 60, port))


def holders(store: RecordStore, key: bytes) -> list[int]:
    nodes = [signed.record.id for signed in store.records(key, NOW)]
    return [next(n for n, k in enumerate(KEYS) if k.id == node) for node in nodes]


def test_the_listing_takes_no_newcomer_when_full_and_the_news_forgets_the_first(
    home: Root, kept: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LISTING_MAX", 3)
    records = [member(home, node) for node in range(5)]
    root, news = records[0].keys[1], records[0].keys[-1]
    assert [kept.put(root, r.raw, NOW).accepted for r in records] == [True] * 3 + [False] * 2
    assert [kept.put(news, r.raw, NOW).accepted for r in records] == [True] * 5
    assert holders(kept, root) == [0, 1, 2]
    assert holders(kept, news) == [2, 3, 4]
    # Who says something new stands last again.
    assert kept.put(news, member(home, 2, seq=2).raw, NOW).accepted
    assert kept.put(news, records[0].raw, NOW).accepted
    assert holders(kept, news) == [4, 2, 0]
    assert len(kept) == 6


def test_a_member_is_listed_only_on_its_own_path(home: Root, kept: RecordStore) -> None:
    one, other = member(home, 0), member(home, 1)
    assert all(kept.put(key, one.raw, NOW).accepted for key in one.keys)
    foreign = set(other.keys) - set(one.keys)
    assert foreign
    assert not any(kept.put(key, one.raw, NOW).accepted for key in foreign)


def test_changes_are_told_and_repeats_are_not(home: Root) -> None:
    told: list[int] = []
    store = RecordStore(home.verifier(), lambda signed: told.append(signed.record.seq))
    puts = []
    for seq in (5, 5, 4, 6):
        signed = word(home, 0, seq)
        puts.append(store.put(signed.key, signed.raw, NOW))
    assert [(put.accepted, put.new) for put in puts] == [
        (True, True), (True, False), (False, False), (True, True),
    ]  # fmt: skip
    assert told == [5, 6]


def test_what_is_found_may_be_more_than_one_node_stores(
    home: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PROVIDERS_MAX", 2)
    found = RecordStore(home.verifier(), sets=2)
    for node in range(5):
        signed = word(home, node, 1)
        found.put(signed.key, signed.raw, NOW)
    assert len(found) == 4
