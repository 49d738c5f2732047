"""Admission, holds, leases between gateways, and reports that arrive late, twice or never."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.keys.key import Key
from gateway.keys.ledger import (
    IDLE_S,
    Due,
    Grant,
    Headroom,
    Held,
    Instant,
    Ledger,
    Refusal,
    Row,
)
from gateway.keys.limits import Minute, Share, grant
from gateway.usage import Tokens

NOON = datetime(2030, 1, 31, 12, tzinfo=UTC).timestamp()
DAY = "2030-01-31"


def at(seconds: float) -> Instant:
    return Instant(5000.0 + seconds, NOON + seconds)


def held(found: Held | Refusal) -> Held:
    assert isinstance(found, Held), found
    return found


@dataclass
class FakeStore:
    """What `Store.exchange` does, in memory."""

    limit: int
    rows: dict[tuple[str, ...], Row] = field(default_factory=dict)
    granted: dict[tuple[str, str], int] = field(default_factory=dict)

    def exchange(self, gateway: str, due: Due) -> list[Grant]:
        for row in due.rows:
            self.rows[gateway, row.day, row.model] = row
        grants = []
        for want in due.wants:
            used: dict[str, int] = {}
            for (name, day, _), row in self.rows.items():
                if day == want.day:
                    spent = row.prompt_tokens + row.completion_tokens
                    used[name] = used.get(name, 0) + spent
            others = [
                Share(amount, used.get(name, 0), False)
                for (name, day), amount in self.granted.items()
                if day == want.day and name != gateway
            ]
            amount = grant(self.limit, want.tokens, used.get(gateway, 0), others)
            self.granted[gateway, want.day] = amount
            grants.append(Grant(want.key_id, want.day, amount, sum(used.values())
                                - used.get(gateway, 0)))  # fmt: skip
        return grants

    def total(self) -> int:
        return sum(row.prompt_tokens + row.completion_tokens for row in self.rows.values())


def test_a_key_without_limits_is_counted() -> None:
    ledger, key = Ledger(), Key("k", "n")
    first = held(ledger.admit(key, 10, 500, at(0)))
    second = held(ledger.admit(key, 10, 500, at(0)))
    ledger.settle(first, "m", Tokens(9, 20), at(1))
    ledger.settle(second, "m", Tokens(1, 2), at(2), estimated=True)
    assert ledger.due(at(3)) == Due([Row("k", DAY, "m", 2, 10, 22, 1)], [])
    assert ledger.headroom(key, at(3)) == (None, None)


def test_requests_a_minute() -> None:
    ledger, key = Ledger(), Key("k", "n", requests_per_minute=2)
    for second in range(2):
        held(ledger.admit(key, 1, 1, at(second)))
    refused = ledger.admit(key, 1, 1, at(2))
    assert refused == Refusal("requests", 2, 59.0)  # the first is in the window until then
    headroom, _ = ledger.headroom(key, at(2))
    assert headroom is not None and (headroom.limit, headroom.left) == (2, 0)
    held(ledger.admit(key, 1, 1, at(61)))


def test_tokens_are_held_until_it_is_known_what_it_cost() -> None:
    ledger, key = Ledger(), Key("k", "n", tokens_per_minute=1000)
    first = held(ledger.admit(key, 100, 600, at(0)))
    second = held(ledger.admit(key, 100, 600, at(0)))
    assert (first.tokens, second.tokens) == (600, 400)  # what it wants, or what is left
    refused = ledger.admit(key, 1, 1, at(0))
    assert isinstance(refused, Refusal) and (refused.what, refused.limit) == ("tokens", 1000)
    ledger.settle(first, "m", Tokens(100, 50), at(5))
    ledger.settle(second, "m", None, at(5))  # not served: costs nothing
    _, tokens = ledger.headroom(key, at(5))
    assert tokens is not None and tokens.left == 850
    [row] = ledger.due(at(6)).rows
    assert row.requests == 1


def test_a_request_larger_than_the_limit_gets_it_to_itself() -> None:
    ledger, key = Ledger(), Key("k", "n", tokens_per_minute=100)
    whole = held(ledger.admit(key, 5000, 9000, at(0)))
    assert whole.tokens == 100
    assert isinstance(ledger.admit(key, 1, 1, at(1)), Refusal)
    ledger.settle(whole, "m", Tokens(4000, 1000), at(2))
    assert isinstance(ledger.admit(key, 1, 1, at(60)), Refusal)  # more than the limit was used
    held(ledger.admit(key, 5000, 9000, at(63.1)))


def test_what_other_workers_used_of_a_minute_counts_as_well() -> None:
    key = Key("k1", "ci", requests_per_minute=4, tokens_per_minute=100)
    one, two = Ledger(), Ledger()
    one.settle(held(one.admit(key, 10, 20, at(0))), "m", Tokens(10, 5), at(0))
    held(one.admit(key, 10, 20, at(0)))
    assert one.minutes(at(0)) == {"k1": Minute(2, 35)}
    two.elsewhere([one.minutes(at(0)), {"k1": Minute(1, 30), "other": Minute(9, 9)}])
    last = held(two.admit(key, 10, 50, at(0)))
    assert last.tokens == 100 - 65  # what is left, which is less than it wants
    assert two.minutes(at(0)) == {"k1": Minute(1, 35)}
    assert two.headroom(key, at(0))[0] == Headroom(4, 0, 61.0)
    refused = two.admit(key, 10, 20, at(0))
    assert isinstance(refused, Refusal) and refused.what == "requests"
    two.elsewhere([one.minutes(at(62))])  # its minute is over, but for what it holds
    assert one.minutes(at(62)) == {"k1": Minute(0, 20)}
    assert held(two.admit(key, 10, 60, at(62))).tokens == 100 - 35 - 20
    two.elsewhere([])
    assert two.headroom(key, at(200))[1] == Headroom(100, 100 - 35 - 45, 0.0)


def lend(ledger: Ledger, store: FakeStore, now: Instant, name: str = "a") -> Due:
    due = ledger.due(now)
    ledger.done(due, store.exchange(name, due), now)
    return due


def test_a_quota_is_leased_in_blocks_and_given_back() -> None:
    ledger, store = Ledger(), FakeStore(1000)
    key = Key("k", "n", tokens_per_day=1000)
    assert ledger.admit(key, 5, 5, at(0)) == Refusal("lease", 1000, IDLE_S)
    lend(ledger, store, at(0))
    assert store.granted == {("a", DAY): 50}
    first = held(ledger.admit(key, 5, 40, at(1)))
    lend(ledger, store, at(1))  # less than half a block is left
    assert store.granted == {("a", DAY): 90}
    ledger.settle(first, "m", Tokens(5, 15), at(2))
    lend(ledger, store, at(3))
    assert store.granted == {("a", DAY): 90}
    lend(ledger, store, at(1 + IDLE_S))
    assert store.granted == {("a", DAY): 20}  # what was used
    assert ledger.due(at(2 + IDLE_S)) == Due([], [])
    assert isinstance(ledger.admit(key, 5, 5, at(3 + IDLE_S)), Refusal)
    lend(ledger, store, at(3 + IDLE_S))
    held(ledger.admit(key, 5, 5, at(3 + IDLE_S)))
    closing = ledger.due(at(4 + IDLE_S), closing=True)
    assert [want.tokens for want in closing.wants] == [25]


def test_a_used_quota_is_refused_until_midnight() -> None:
    ledger, store = Ledger(), FakeStore(100)
    key = Key("k", "n", tokens_per_day=100)
    ledger.admit(key, 100, 100, at(0))
    lend(ledger, store, at(0))
    whole = held(ledger.admit(key, 100, 100, at(0)))
    ledger.settle(whole, "m", Tokens(100, 0), at(1))
    assert ledger.admit(key, 1, 1, at(2)) == Refusal("quota", 100, 12 * 3600 - 2)
    _, tokens = ledger.headroom(key, at(2))
    assert tokens is not None and (tokens.left, tokens.reset_s) == (0, 12 * 3600 - 2)
    tomorrow = at(12 * 3600)
    assert isinstance(ledger.admit(key, 1, 1, tomorrow), Refusal)
    lend(ledger, store, tomorrow)
    held(ledger.admit(key, 1, 1, tomorrow))


def test_what_others_used_counts() -> None:
    store, key = FakeStore(100), Key("k", "n", tokens_per_day=100)
    ledgers = {name: Ledger() for name in "ab"}
    for name, ledger in ledgers.items():
        ledger.admit(key, 50, 50, at(0))
        lend(ledger, store, at(0), name)
    assert sum(store.granted.values()) == 100
    spent = held(ledgers["a"].admit(key, 50, 50, at(0)))
    ledgers["a"].settle(spent, "m", Tokens(50, 0), at(1))
    lend(ledgers["a"], store, at(1), "a")
    refused = ledgers["a"].admit(key, 10, 10, at(2))
    assert isinstance(refused, Refusal) and refused.what == "lease"  # the rest is b's for now
    lend(ledgers["b"], store, at(IDLE_S), "b")
    lend(ledgers["a"], store, at(IDLE_S), "a")
    held(ledgers["a"].admit(key, 10, 10, at(IDLE_S)))


@pytest.mark.parametrize("perhaps_done", [True, False])
def test_what_was_to_go_back_is_used_only_if_it_surely_did_not_go(perhaps_done: bool) -> None:
    ledger, store = Ledger(), FakeStore(1000)
    key = Key("k", "n", tokens_per_day=1000)
    ledger.admit(key, 5, 5, at(0))
    lend(ledger, store, at(0))
    due = ledger.due(at(IDLE_S))
    assert isinstance(ledger.admit(key, 5, 5, at(IDLE_S)), Refusal)  # it is on its way
    ledger.failed(due, perhaps_done=perhaps_done)
    assert isinstance(ledger.admit(key, 5, 5, at(IDLE_S)), Refusal if perhaps_done else Held)


def test_what_is_counted_while_a_report_is_on_its_way_is_told_next() -> None:
    ledger, store, key = Ledger(), FakeStore(1000), Key("k", "n")
    ledger.settle(held(ledger.admit(key, 1, 1, at(0))), "m", Tokens(1, 2), at(0))
    due = ledger.due(at(1))
    ledger.settle(held(ledger.admit(key, 1, 1, at(1))), "m", Tokens(3, 4), at(1))
    ledger.done(due, store.exchange("a", due), at(2))
    assert ledger.unreported == 1
    lend(ledger, store, at(3))
    assert (ledger.unreported, store.total()) == (0, 10)


def test_what_is_missed_while_a_grant_is_on_its_way_is_asked_for_next() -> None:
    ledger, store = Ledger(), FakeStore(1000)
    key = Key("k", "n", tokens_per_day=1000)
    ledger.admit(key, 5, 5, at(0))
    due = ledger.due(at(0))
    assert isinstance(ledger.admit(key, 200, 200, at(0)), Refusal)
    ledger.done(due, store.exchange("a", due), at(0))
    lend(ledger, store, at(0))
    held(ledger.admit(key, 200, 200, at(0)))


def test_old_days_are_forgotten_once_they_are_told() -> None:
    ledger, store = Ledger(), FakeStore(1000)
    key = Key("k", "n", tokens_per_day=1000)
    ledger.admit(key, 5, 5, at(0))
    lend(ledger, store, at(0))
    long = held(ledger.admit(key, 5, 5, at(0)))
    short = held(ledger.admit(key, 5, 5, at(0)))
    ledger.settle(short, "m", Tokens(3, 0), at(0))
    lend(ledger, store, at(3 * 86_400))
    ledger.settle(long, "m", Tokens(4, 0), at(3 * 86_400))
    lend(ledger, store, at(3 * 86_400))
    assert {where[1]: row.prompt_tokens for where, row in store.rows.items()} == {
        DAY: 3,
        "2030-02-03": 4,
    }
    lend(ledger, store, at(5 * 86_400))
    assert not ledger._totals
    assert all(not account.leases for account in ledger._accounts.values())


def told(ledger: Ledger, store: FakeStore, name: str, due: Due, now: Instant, fault: str) -> None:
    """Exchange what was due; the store may be away before, or its answer be lost."""
    if fault == "before":
        ledger.failed(due, perhaps_done=False)
        return
    grants = store.exchange(name, due)
    if fault == "after":
        ledger.failed(due, perhaps_done=True)
        return
    ledger.done(due, grants, now)


event: Any = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(["admit", "settle", "tell", "tell", "wait"]),
    st.integers(1, 80),
    st.integers(0, 120),
    st.sampled_from(["", "", "before", "after"]),
)


@given(limit=st.integers(1, 600), events=st.lists(event, max_size=120))
def test_a_quota_is_one_quota_whatever_fails(
    limit: int, events: list[tuple[str, str, int, int, str]]
) -> None:
    """Three gateways, costs up to what is held: no more than the limit, and all of it told once."""
    store, key = FakeStore(limit), Key("k", "n", tokens_per_day=limit)
    ledgers = {name: Ledger() for name in "abc"}
    running: dict[str, list[Held]] = {name: [] for name in "abc"}
    on_its_way: dict[str, Due] = {}
    clock, spent, requests = 0.0, 0, 0
    for name, what, needed, more, fault in events:
        ledger, now = ledgers[name], at(clock)
        if what == "admit":
            found = ledger.admit(key, needed, needed + more, now)
            if isinstance(found, Held):
                running[name].append(found)
            elif found.what == "quota":
                assert spent + min(needed, limit) > limit
        elif what == "settle" and running[name]:
            ended = running[name].pop()
            cost = min(ended.tokens, needed)
            ledger.settle(ended, "m", Tokens(cost, 0), now)
            spent += cost
            requests += 1
        elif what == "tell":
            # Requests come and go while a report is on its way.
            due = on_its_way.pop(name, None)
            if due is None:
                on_its_way[name] = ledger.due(now)
            else:
                told(ledger, store, name, due, now, fault)
        elif what == "wait":
            clock += more
        in_flight = sum(one.tokens for ones in running.values() for one in ones)
        assert spent + in_flight <= limit
    for name, ledger in ledgers.items():
        if name in on_its_way:
            told(ledger, store, name, on_its_way[name], at(clock), "after")
        told(ledger, store, name, ledger.due(at(clock)), at(clock), "")
        assert ledger.unreported == 0
    assert store.total() == spent
    assert sum(row.requests for row in store.rows.values()) == requests
