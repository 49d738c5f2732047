"""The two slots: one test per event, what boots, and what is told."""

from __future__ import annotations

from itertools import product

import pytest
from slot_states import STATES

from agent.errors import StateError, UsageError
from image.node.slots import (
    Back,
    Bad,
    Empty,
    GaveUp,
    Good,
    Healthy,
    ResetDone,
    ResetWanted,
    Standing,
    State,
    Trial,
    Writing,
    Written,
    apply,
    boot,
    why_not,
)


def test_a_flashed_disk_boots_its_one_slot() -> None:
    assert boot(State()) == (State(), "a")


def test_there_is_always_a_good_slot() -> None:
    with pytest.raises(StateError, match="no slot of the disk"):
        State("a", Bad("tries"), Trial())


def test_writing_empties_the_other_slot() -> None:
    assert apply(State("b", Good(), Bad("tries")), Writing("a")) == State("a", Good(), Empty())
    assert apply(State("a", Good(), Good()), Writing("b")) == State("b", Empty(), Good())


@pytest.mark.parametrize("running", [Trial(2), Trial(0), Bad("unhealthy"), Empty()])
def test_the_only_good_slot_is_not_overwritten(running: Standing) -> None:
    with pytest.raises(StateError, match="not yet proved itself"):
        apply(State("b", Good(), running), Writing("b"))


def test_written_puts_the_other_slot_on_trial() -> None:
    assert apply(State("a", Good(), Empty()), Written("a")) == State("b", Good(), Trial(3))
    with pytest.raises(StateError, match="was not being written"):
        apply(State("a", Good(), Bad("tries")), Written("a"))


def test_a_trial_has_three_boots_and_then_the_other_slot_is_back() -> None:
    state = State("b", Good(), Trial())
    seen = []
    for _ in range(5):
        state, slot = boot(state)
        seen.append(slot)
    assert seen == ["b", "b", "b", "a", "a"]
    assert state == State("b", Good(), Bad("tries"))
    assert why_not(state, "a") == (
        "the version in slot b did not come up in 3 tries; this is the one before it, in slot a"
    )


def test_healthy_ends_a_trial_and_makes_nothing_else_good() -> None:
    assert apply(State("b", Good(), Trial(0)), Healthy("b")) == State("b", Good(), Good())
    for standing in (Empty(), Bad("tries"), Bad("unreadable"), Bad("unhealthy"), Good()):
        state = State("b", Good(), standing)
        assert apply(state, Healthy("b")) == state


def test_giving_up_counts_when_the_tries_are_used_up() -> None:
    state = State("b", Good(), Trial(1))
    assert apply(state, GaveUp("b")) == state
    state = apply(State("b", Good(), Trial(0)), GaveUp("b"))
    assert state == State("b", Good(), Bad("unhealthy"))
    assert boot(state) == (state, "a")
    assert "did not stay healthy" in why_not(state, "a")
    good = State("b", Good(), Good())
    assert apply(good, GaveUp("b")) == good


def test_back_to_the_other_slot() -> None:
    state = apply(State("b", Good(), Good()), Back("b"))
    assert boot(state) == (state, "a")
    assert why_not(state, "a") == ""
    with pytest.raises(UsageError, match="slot b holds no version"):
        apply(State(), Back("a"))


def test_a_reset_is_wanted_until_it_is_done() -> None:
    state = apply(State(), ResetWanted())
    assert state == State(reset=True)
    assert apply(state, ResetWanted()) == state
    assert apply(state, ResetDone()) == State()


def test_a_slot_that_cannot_be_read_is_passed_over() -> None:
    unread = State("b", Good(), Bad("unreadable"))
    assert boot(State("b", Good(), Trial(2)), {"a"}) == (unread, "a")
    assert boot(State("b", Good(), Good()), {"a"}) == (unread, "a")
    assert "could not be read" in why_not(unread, "a")


def test_where_nothing_can_be_read_nothing_is_decided() -> None:
    for state in STATES:
        assert boot(state, ()) == (state, None)


def test_what_boots_is_good_or_has_a_try_less() -> None:
    for state, readable in product(STATES, ({"a", "b"}, {"a"}, {"b"})):
        after, slot = boot(state, readable)
        if slot is None:
            assert after == state
            assert all(state.of(s) not in (Good(), Trial(1), Trial(2), Trial(3)) for s in readable)
            continue
        assert slot in readable
        if state.of(slot) == Good():
            assert after.of(slot) == Good()
        else:
            assert state.of(slot) == Trial(after.of(slot).left + 1)


def test_an_ordinary_start_writes_nothing() -> None:
    for state in STATES:
        if state.of(state.first) == Good():
            assert boot(state) == (state, state.first)
