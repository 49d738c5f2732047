"""When workers are started, again and again, and when they are killed: on a clock that is given."""

from __future__ import annotations

from gateway.supervision import (
    AT_ONCE_S,
    CLOSE_S,
    LOOK_S,
    PROVED_S,
    RESTART_FIRST_S,
    RESTART_MOST_S,
    STILL,
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


def looks(rules: Supervision, beats: list[dict[int, int]], began: float = 0.0) -> list[list[int]]:
    """Return who stands still at each of so many looks in a row."""
    return [rules.still(told, began + n * LOOK_S) for n, told in enumerate(beats)]


def test_one_that_tells_nothing_any_more_stands_still_until_it_has_ended() -> None:
    rules = started()
    beats = [{1: 10 + n, 2: min(20 + n, 22)} for n in range(9)]
    assert looks(rules, beats) == [[]] * (2 + STILL) + [[2]] * 3
    rules.ended(2, 50.0)
    rules.due(60.0)
    # Until the next one that is worker 2 has told anything, it may still be starting.
    beats = [{1: 30 + n, 2: 22} for n in range(STILL + 3)]
    assert looks(rules, beats, 60.0) == [[]] * len(beats)
    beats = [{1: 60 + n, 2: 23} for n in range(STILL + 2)]
    assert looks(rules, beats, 120.0) == [[]] * (STILL) + [[2], [2]]


def test_looks_that_come_too_soon_or_after_a_sleep_blame_nobody() -> None:
    rules = started()
    assert rules.still({1: 1, 2: 1}, 0.0) == []
    for n in range(100):
        assert rules.still({1: 1, 2: 1}, n * LOOK_S / 100) == []
    assert rules.still({1: 1, 2: 1}, 10_000.0) == []
    assert rules.still({1: 2, 2: 2}, 20_000.0) == []


def test_who_stops_is_given_its_time() -> None:
    rules = started()
    rules.still({1: 1, 2: 1}, 0.0)
    rules.stop(1.0)
    assert looks(rules, [{1: 1, 2: 1}] * (STILL + 3), LOOK_S) == [[]] * (STILL + 3)
