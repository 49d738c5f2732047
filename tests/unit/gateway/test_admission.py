"""No request is lost or runs twice, shares are fair, and nothing grows without bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import RETRY_AFTER_MOST_S, RETRY_AFTER_UNKNOWN_S, Admission, Place, State


def test_there_is_room_or_a_queue_or_neither() -> None:
    made = Admission(1)
    states = [made.ask("a", 0.0, 2).state for _ in range(4)]
    assert states == [State.RUNNING, State.RUNNING, State.WAITING, State.REFUSED]


def test_places_are_shared_between_clients_however_many_they_ask() -> None:
    made = Admission(100)
    running = [made.ask("greedy", 0.0, 4) for _ in range(20)][:4]
    modest = [made.ask("modest", 0.0, 4) for _ in range(3)]
    made.changed()
    for place in running[:2]:
        made.leave(place, 1.0, 4)
    assert made.changed() == modest[:2]  # two each now
    made.leave(running[2], 1.0, 4)
    assert made.changed() == [modest[2]] or made.running == 4


def test_weights_and_priorities() -> None:
    made = Admission(100)
    first = made.ask("x", 0.0, 1)
    heavy = [made.ask("heavy", 0.0, 1, weight=3.0) for _ in range(6)]
    light = [made.ask("light", 0.0, 1) for _ in range(6)]
    made.changed()
    made.leave(first, 1.0, 8)
    ran = made.changed()
    assert (sum(p in heavy for p in ran), sum(p in light for p in ran)) == (6, 2)
    made = Admission(100)
    first = made.ask("a", 0.0, 1)
    places = [made.ask("a", 0.0, 1, priority) for priority in (0, 5, 0, 5)]
    made.changed()
    order = []
    now = first
    for _ in places:
        made.leave(now, 1.0, 1)
        [now] = made.changed()
        order.append(places.index(now))
    assert order == [1, 3, 0, 2]


def test_a_full_queue_refuses_the_last_of_who_waits_with_most() -> None:
    made = Admission(4)
    made.ask("a", 0.0, 1)
    waiting = [made.ask("a", 0.0, 1) for _ in range(4)]
    newcomer = made.ask("b", 0.0, 1)
    assert newcomer.state is State.WAITING
    assert [place.state for place in waiting] == [State.WAITING] * 3 + [State.REFUSED]
    assert made.changed()[-1] is waiting[3]
    assert made.ask("a", 0.0, 1).state is State.REFUSED


def test_retry_after_is_when_the_queue_will_be_empty() -> None:
    made = Admission(100)
    assert made.retry_after_s(0.0) == RETRY_AFTER_UNKNOWN_S
    places = [made.ask("a", 0.0, 1) for _ in range(30)]
    for number, place in enumerate(places[:10]):
        made.leave(place, 2.0 * (number + 1), 1)
    # One leaves every two seconds (the first interval is not known), and 19 wait.
    assert made.retry_after_s(20.0) == pytest.approx(36, abs=4)
    assert made.retry_after_s(1000.0) == RETRY_AFTER_UNKNOWN_S
    for number, place in enumerate(places[10:12]):
        made.leave(place, 2000.0 + 50 * number, 1)
    assert made.retry_after_s(2055.0) == RETRY_AFTER_MOST_S


steps = st.lists(
    st.tuples(st.sampled_from("asssl"), st.sampled_from("abc"), st.integers(0, 3),
              st.integers(0, 30), st.integers(1, 4)),
    max_size=80,
)  # fmt: skip


@given(steps=steps)
def test_whatever_happens_each_has_one_end(
    steps: list[tuple[str, str, int, int, int]],
) -> None:
    made = Admission(5)
    places: list[Place] = []
    known: dict[Place, State] = {}
    for what, client, priority, which, limit in steps:
        before = made.running
        if what == "l" and places:
            made.leave(places[which % len(places)], 1.0, limit)
        else:
            places.append(made.ask(client, 0.0, limit, priority))
            known[places[-1]] = State.WAITING
        for place in made.changed():
            assert known[place] is State.WAITING, "it is told once"
            known[place] = place.state
        for place in places:
            if place.state is State.LEFT:
                known[place] = State.LEFT
        assert known == {place: place.state for place in places}
        states = [place.state for place in places]
        assert made.running == states.count(State.RUNNING) <= max(limit, before)
        assert made.waiting == states.count(State.WAITING) <= 5
        assert not made.waiting or made.running >= limit, "nobody waits beside a free place"
    for place in places:
        made.leave(place, 2.0, 1)
        made.leave(place, 2.0, 1)
    assert {place.state for place in places} <= {State.LEFT, State.REFUSED}
    assert (made.running, made.waiting, made._clients) == (0, 0, {})
