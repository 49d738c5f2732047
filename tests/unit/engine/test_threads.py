"""How many threads are tried, and which number wins, over any measurement."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.engine.threads import NEARLY, candidates, choose, described

COUNTS = st.integers(1, 512)
SPEEDS = st.dictionaries(COUNTS, st.floats(0.01, 1e5), min_size=1, max_size=12)


@given(allowed=COUNTS, cores=COUNTS)
def test_all_that_can_run_and_one_for_each_core_are_among_what_is_tried(
    allowed: int, cores: int
) -> None:
    found = candidates(allowed, cores)
    assert found == tuple(sorted(set(found)))
    assert found[0] == 1
    assert found[-1] == allowed
    assert min(allowed, cores) in found
    # From each to the next it is twice as many at most, so nothing good lies far from all.
    assert all(b <= 2 * a for a, b in pairwise(found))


def test_few_cpus_leave_little_to_try() -> None:
    assert candidates(1, 1) == (1,)
    assert candidates(2, 1) == (1, 2)
    assert candidates(16, 8) == (1, 2, 4, 8, 16)
    assert candidates(12, 6) == (1, 2, 4, 6, 8, 12)


@given(SPEEDS)
def test_what_is_chosen_is_nearly_the_best_and_nothing_smaller_is(speeds: dict[int, float]) -> None:
    chosen, best = choose(speeds), max(speeds.values())
    assert speeds[chosen] >= NEARLY * best
    assert all(speed < NEARLY * best for count, speed in speeds.items() if count < chosen)


@given(SPEEDS, st.floats(0.1, 10.0))
def test_a_machine_that_is_slower_as_a_whole_chooses_the_same(
    speeds: dict[int, float], factor: float
) -> None:
    assert choose({count: speed * 2 for count, speed in speeds.items()}) == choose(speeds)
    # Also where rounding is at work, except at the very edge.
    chosen = choose({count: speed * factor for count, speed in speeds.items()})
    assert speeds[chosen] >= (NEARLY - 1e-9) * max(speeds.values())


def test_threads_that_share_a_core_or_wait_for_memory_are_left_out() -> None:
    assert choose({1: 41.0, 2: 78.0}) == 2
    assert choose({1: 41.0, 2: 78.0, 4: 80.0, 8: 61.0}) == 2
    assert choose({1: 100.0, 2: 60.0}) == 1
    assert described({2: 78.4, 1: 41.0}) == "1: 41, 2: 78 tokens/s"
