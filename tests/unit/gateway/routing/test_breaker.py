"""The breaker's table, row by row, and that it never stays open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.breaker import COOL_MOST_S, TRIAL_S, Breaker, State
from gateway.routing.replicas import Fault


def opened(now: float = 0.0) -> Breaker:
    made = Breaker()
    assert made.fault(Fault.REFUSED, now)
    return made


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.UNREACHABLE])
def test_what_it_says_itself_opens_at_once(fault: Fault) -> None:
    made = Breaker()
    assert made.state(0.0) is State.CLOSED
    assert made.fault(fault, 0.0)
    assert (made.state(0.99), made.state(1.0)) == (State.OPEN, State.HALF_OPEN)


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.SLOW])
def test_others_open_when_they_come_three_in_a_row(fault: Fault) -> None:
    made = Breaker()
    assert [made.fault(fault, 0.0) for _ in range(3)] == [False, False, True]
    made = Breaker()
    for _ in range(3):
        assert not made.fault(fault, 0.0)
        assert not made.fault(fault, 0.0)
        for _ in range(6):
            made.served(0.0)
    assert made.state(0.0) is State.CLOSED


def test_half_of_many_failing_opens_it() -> None:
    made = Breaker()
    states = []
    for _ in range(6):
        made.served(0.0)
        states.append(made.fault(Fault.ERROR, 0.0))
    assert states == [False, False, False, True, True, True]
    later = Breaker()
    for second in range(60):  # as often, but rare: one that fails each other request of few
        later.served(10.0 * second)
        assert not later.fault(Fault.ERROR, 10.0 * second)


def test_a_trial_that_is_served_closes_it_and_one_that_fails_opens_it_for_longer() -> None:
    made = opened()
    assert not made.on_trial(1.0)
    made.began(1.0)
    assert made.on_trial(1.1)
    made.fault(Fault.ERROR, 1.2)
    assert not made.on_trial(1.2)
    made = opened()
    made.began(1.0)
    made.fault(Fault.REFUSED, 1.2)
    assert (made.state(3.1), made.state(3.2)) == (State.OPEN, State.HALF_OPEN)
    made.served(3.3)
    assert made.state(3.3) is State.CLOSED
    made.fault(Fault.REFUSED, 4.0)
    assert made.state(5.0) is State.HALF_OPEN  # it begins anew with a second


def test_a_trial_that_leaves_or_takes_long_makes_way_for_another() -> None:
    made = opened()
    made.began(1.0)
    made.left()
    assert not made.on_trial(1.0)
    made.began(2.0)
    assert made.on_trial(2.0 + TRIAL_S - 0.1)
    made.began(3.0)  # another one there does not count as the trial
    assert not made.on_trial(2.0 + TRIAL_S)


events = st.lists(
    st.tuples(
        st.sampled_from(["began", "left", "served", "reached", *Fault]),
        st.floats(0, 10),
        st.floats(0, 1000),
    ),
    max_size=60,
)


@given(events=events)
def test_it_is_never_stuck(events: list[tuple[str | Fault, float, float]]) -> None:
    made, now = Breaker(), 0.0
    for what, later, asked_s in events:
        now += later
        match what:
            case Fault():
                made.fault(what, now, asked_s)
            case "began":
                made.began(now)
            case "left":
                made.left()
            case "served":
                made.served(now)
                assert made.state(now) is State.CLOSED
            case _:
                made.reached()
                assert made.state(now) is State.CLOSED
        assert made.cool_until <= now + COOL_MOST_S
    assert made.state(now + COOL_MOST_S) is not State.OPEN
    assert not made.on_trial(now + COOL_MOST_S + TRIAL_S)
