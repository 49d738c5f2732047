"""When a second replica is asked as well: by rules, within a budget, and what is learned of it."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.hedging import LEAST_S, MOST, Hedge, budget
from gateway.retries import Budget
from gateway.routing import Attempt, Fault, Need, Picked, Replica, Router, State

ASK = Need("m", streamed=True, kind="completions", prompt_bytes=4000)
WHOLE = Need("m", kind="completions", prompt_bytes=4000)
PLENTY = 256


class Known:
    """A router that says what it is told to: when an attempt is overdue, and who is sooner."""

    def __init__(self) -> None:
        self.due_s = 0.0
        self.sooner: Picked | None = None

    def overdue_in_s(self, attempt: Attempt, now: float) -> float:
        return attempt.begun + self.due_s - now

    def second(self, first: Attempt, without: frozenset[str], *_: Any) -> Picked | None:
        assert first.url in without
        return self.sooner


def second_choice() -> Picked:
    return Picked(Replica("b", "http://b", "mesh"), 0.1, "hedge", Attempt("http://b", ASK, 0.0))


def hedge(router: Any, one: Budget, begun: float = 0.0, free: bool = True) -> Hedge:
    first = Attempt("http://a", ASK, begun)
    return Hedge(router, one, first, frozenset(), PLENTY, lambda: free)


@given(
    percent=st.floats(0.1, 100),
    looks=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=300),
)
def test_the_budget_is_never_exceeded_and_none_is_sent_twice_or_to_nobody(
    percent: float, looks: list[tuple[int, bool]]
) -> None:
    known, purse = Known(), budget(percent)
    sent = 0
    for count, another in looks:
        purse.request()
        known.sooner = second_choice() if another else None
        one = hedge(known, purse)
        found = [one.look(now) for now in (1.0, 2.0, 4.0, 8.0, 16.0)[:count]]
        hedges = [each for each in found if isinstance(each, Picked)]
        assert len(hedges) <= 1
        assert not hedges or another
        sent += len(hedges)
    assert sent <= MOST + percent / 100 * len(looks) + 1e-6


@given(due_s=st.floats(0, 1e6), later=st.lists(st.floats(0.001, 10.0), max_size=40))
def test_it_is_not_sent_before_it_is_late_nor_before_the_floor(
    due_s: float, later: list[float]
) -> None:
    known, now = Known(), 50.0
    known.due_s, known.sooner = due_s, second_choice()
    one = hedge(known, budget(5.0), begun=50.0)
    for step in later:
        found = one.look(now)
        if isinstance(found, Picked):
            assert now - 50.0 >= max(due_s, LEAST_S) - 1e-6
            assert one.look(now + 9) == math.inf
            return
        assert found > 0
        now += step


def test_it_looks_again_later_each_time() -> None:
    known = Known()
    one = hedge(known, budget(5.0))
    now, looks = 0.0, 0
    while now < 3600:
        wait_s = one.look(now)
        assert isinstance(wait_s, float)
        now, looks = now + wait_s, looks + 1
    assert looks < 20


def test_while_others_wait_for_a_place_it_is_not_sent() -> None:
    known = Known()
    known.sooner = second_choice()
    purse = budget(5.0)
    assert isinstance(hedge(known, purse, free=False).look(9.0), float)
    assert isinstance(hedge(known, purse).look(9.0), Picked)


def trained(*names: str, need: Need = ASK, seconds: float = 0.5) -> Router:
    """Return a router at whose replicas ten requests took some half a second each, until 0.0."""
    made, random = Router("latency_aware", Random(1)), Random(3)
    made.update("mesh", [Replica(n, f"http://{n}", "mesh", ("m",)) for n in names], -90.0)
    for number in range(10):
        for name in names:
            serve(made, name, seconds * random.uniform(0.9, 1.1), -60.0 + number, need)
    return made


def begin(made: Router, name: str, now: float, need: Need = ASK) -> Attempt:
    others = frozenset(f"http://{r.name}" for r in made.replicas() if r.name != name)
    one = made.pick(need, now, others)
    assert isinstance(one, Picked)
    if len(others):
        one.attempt.others_s = 0.5
    made.begin(one.replica.url, one.attempt, now)
    return one.attempt


def serve(made: Router, name: str, seconds: float, now: float, need: Need = ASK) -> None:
    attempt = begin(made, name, now, need)
    now += seconds
    made.first_byte(attempt.url, seconds, streamed=need.streamed, now=now, attempt=attempt)
    made.end(attempt.url, attempt, now)


def look(made: Router, first: Attempt, now: float, most: int = PLENTY) -> Picked | float:
    return Hedge(made, budget(5.0), first, frozenset(), most, lambda: True).look(now)


def test_the_other_replica_is_asked_when_the_first_is_late() -> None:
    made = trained("a", "b")
    first = begin(made, "a", 0.0)
    due_s = look(made, first, 0.0)
    assert isinstance(due_s, float)
    assert 0.5 < due_s < 2.5
    assert isinstance(look(made, first, due_s - 0.01), float)
    found = look(made, first, max(due_s, 2.0))
    assert isinstance(found, Picked)
    assert (found.replica.name, found.attempt.hedge) == ("b", True)
    assert found.route.startswith("hedge; predicted 0.")
    assert "a had no first byte after" in found.route


def test_nobody_else_is_asked_who_would_not_be_sooner_or_has_no_place() -> None:
    late = 3.0
    made = trained("a")
    assert isinstance(look(made, begin(made, "a", 0.0), late), float)

    made = trained("a", "b")
    made.fault("http://b", Fault.REFUSED, "503", late)
    assert isinstance(look(made, begin(made, "a", 0.0), late), float)

    made = trained("a", "b")
    begin(made, "b", 0.0)
    first = begin(made, "a", 0.0)
    assert isinstance(look(made, first, 0.5 * late, most=1), float)
    assert isinstance(look(made, first, late, most=2), float)  # its own is overdue as well

    made = trained("a", "b")
    first = begin(made, "a", 0.0)
    for _ in range(30):
        begin(made, "b", late - 0.01)
    assert isinstance(look(made, first, late), float)

    made = trained("a")
    made.update("named", [Replica("new", "http://new", "named", ("m",))], 0.0)
    assert isinstance(look(made, begin(made, "a", 0.0), late), float)


def test_nothing_is_late_where_nothing_is_known() -> None:
    made = Router("latency_aware", Random(1))
    made.update("mesh", [Replica(n, f"http://{n}", "mesh", ("m",)) for n in "ab"], 0.0)
    one = made.pick(ASK, 0.0)
    assert isinstance(one, Picked)
    made.begin(one.replica.url, one.attempt, 0.0)
    assert look(made, one.attempt, 1000.0) == math.inf
    made.update("mesh", [], 0.0)
    assert look(made, one.attempt, 1000.0) == math.inf


def test_a_long_whole_answer_is_late_only_where_nobody_is_answered() -> None:
    made = trained("a", "b", need=WHOLE)
    first = begin(made, "a", 0.0, WHOLE)
    for second in range(1, 9):
        serve(made, "a", 0.5, float(second), WHOLE)
    assert isinstance(look(made, first, 8.6), float)
    assert isinstance(look(made, first, 20.0), Picked)


@pytest.mark.parametrize(("answers", "state"), [(False, State.OPEN), (True, State.CLOSED)])
def test_who_is_outrun_again_and_again_and_answers_nobody_is_left_alone(
    answers: bool, state: State
) -> None:
    made = trained("a", "b")
    for number in range(3):
        now = 10.0 * number
        first = begin(made, "a", now)
        if answers:
            serve(made, "a", 0.5, now)
        made.end(first.url, first, now + 2.0)
        made.outrun(first, now + 2.0)
    (breaker,) = [entry["breaker"] for entry in made.view(22.0) if entry["name"] == "a"]
    assert breaker == state.value


def test_who_loses_is_not_taken_for_fast() -> None:
    def expected_s(made: Router, name: str) -> float:
        attempt = begin(made, name, 8.0)
        made.end(attempt.url, attempt, 8.0)
        return attempt.expected_s

    made, untouched = trained("a", "b"), trained("a", "b")
    for number in range(8):
        first, second = begin(made, "a", float(number)), begin(made, "b", number + 0.9)
        made.end(second.url, second, number + 0.91)  # the first was sooner after all
        made.first_byte("http://a", 0.91, streamed=True, now=number + 0.91, attempt=first)
        made.end(first.url, first, number + 0.91)
    assert expected_s(made, "b") == pytest.approx(expected_s(untouched, "b"), rel=1e-6)
    assert expected_s(made, "a") > expected_s(untouched, "a")
    for number in range(8):  # and now it is the second that is sooner
        late = begin(made, "a", 8.0 + number)
        made.end(late.url, late, 8.0 + number + 2.0)
    assert expected_s(made, "a") > 1.0


@pytest.mark.parametrize(("wins", "goes_on_at"), [(False, "a"), (True, "b")])
def test_a_conversation_goes_on_where_it_was_answered(wins: bool, goes_on_at: str) -> None:
    made = trained("a", "b")
    talk = Need("m", streamed=True, kind="completions", prompt_bytes=4000, session="talk")
    first = begin(made, "a", 0.0, talk)
    found = look(made, first, 3.0)
    assert isinstance(found, Picked)
    made.begin(found.replica.url, found.attempt, 3.0)
    won = found.attempt if wins else first
    made.first_byte(won.url, 0.5, streamed=True, now=3.5, attempt=won)
    for attempt in (first, found.attempt):
        made.end(attempt.url, attempt, 3.5)
    names = {name for name in "ab" if "same session" in route_at(made, name, talk)}
    assert names == {goes_on_at}


def route_at(made: Router, name: str, need: Need) -> str:
    others = frozenset(f"http://{r.name}" for r in made.replicas() if r.name != name)
    one = made.pick(need, 9.0, others)
    assert isinstance(one, Picked)
    return one.route
