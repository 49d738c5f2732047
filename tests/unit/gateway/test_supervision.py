"""When workers are started, again and again, and when they are killed: on a clock that is given."""

from __future__ import annotations

from gateway.supervision import (
    AT_ONCE_S,
    CLOSE_S,
    PROVED_S,
    RESTART_FIRST_S,
    RESTART_MOST_S,
    Supervision,
)


def started(workers: int = 2, drain_s: float = 30.0) -> Supervision:
    """Return rules whose workers all serve, at 0."""
    rules = Supervision(workers, drain_s, 0.0)
    assert rules.due(0.0) == list(range(1, workers + 1))
    rules.ready()
    return rules


def test_all_are_started_at_once_and_only_once() -> None:
    rules = started(3)
    assert rules.due(0.0) == [] and not rules.over
    assert rules.wait_s(0.0) == float("inf")


def test_one_that_ends_is_started_again_later_each_time() -> None:
    rules, now, waits = started(), 0.0, []
    for _ in range(10):
        wait_s = rules.ended(2, now)
        assert wait_s is not None and rules.wait_s(now) == wait_s
        assert rules.due(now + wait_s - 0.01) == []
        now += wait_s
        assert rules.due(now) == [2]
        waits.append(wait_s)
    assert waits[:4] == [RESTART_FIRST_S * 2**n for n in range(4)]
    assert waits[-1] == RESTART_MOST_S


def test_one_that_ran_for_long_is_started_again_soon() -> None:
    rules = started()
    for at in (0.0, 1.0, 2.0):
        rules.ended(1, at)
        rules.due(at + 1.0)
    assert rules.ended(1, 3.0 + PROVED_S) == RESTART_FIRST_S
    assert rules.ended(2, 3.0 + PROVED_S) == RESTART_FIRST_S  # each has its own count


def test_where_none_was_ever_ready_all_stop() -> None:
    rules = Supervision(2, 30.0, 0.0)
    rules.due(0.0)
    assert rules.ended(1, 0.5) is None
    assert rules.failed and rules.stopping and not rules.over
    assert rules.ended(2, 0.6) is None
    assert rules.over


def test_a_stop_starts_none_again_and_is_over_with_the_last() -> None:
    rules = started()
    rules.ended(1, 1.0)
    assert rules.stop(1.0) is False
    assert rules.due(100.0) == [] and not rules.over
    assert rules.ended(2, 2.0) is None
    assert rules.over and not rules.failed


def test_who_does_not_end_is_killed_and_sooner_at_the_second_stop() -> None:
    rules = started(drain_s=10.0)
    rules.ended(1, 1.0)
    rules.stop(1.0)
    until = 1.0 + 10.0 + CLOSE_S
    assert rules.wait_s(1.0) == until - 1.0
    assert rules.overdue(until - 0.1) == []
    assert rules.overdue(until) == [2]
    assert rules.overdue(until + 0.1) == []  # a killed one takes a moment
    assert rules.stop(until) is True
    assert rules.wait_s(until) == AT_ONCE_S
