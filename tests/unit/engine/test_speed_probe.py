"""What a device's speed is taken from, where a container has a quota of the CPUs."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.speed_probe import lasting_s

TIMES = st.floats(1e-6, 100.0)


@given(TIMES, TIMES)
def test_without_a_quota_it_is_what_it_took(took_s: float, cpu_s: float) -> None:
    assert lasting_s(took_s, cpu_s, None) == took_s


@given(TIMES, st.integers(1, 64))
def test_a_quota_that_threads_cannot_reach_changes_nothing(took_s: float, threads: int) -> None:
    assert lasting_s(took_s, threads * took_s, float(threads)) == pytest.approx(took_s)


# Less than a whole CPU: the model below starts anew at a period's end, where rounding may miss it.
@given(st.floats(0.05, 0.99), st.floats(0.001, 0.04))
def test_a_burst_counts_as_what_goes_on(quota: float, token_s: float) -> None:
    """One thread by a quota in periods of 0.1 s; each time is when a token was there."""
    there, left, now = [0.0], 0.1 * quota, 0.0
    for _ in range(400):
        need = token_s
        while need > left:
            need -= left
            now, left = (int(now / 0.1 + 1e-6) + 1) * 0.1, 0.1 * quota
        now, left = now + need, left - need
        there.append(now)
    took = [later - earlier for earlier, later in pairwise(there)]
    mean_s = (there[-1] - there[0]) / len(took)
    found = min(lasting_s(each, token_s, quota) for each in took)
    assert found == pytest.approx(mean_s, rel=0.1, abs=0.1 / 400)


def test_a_clock_that_stands_is_no_division_by_zero() -> None:
    assert lasting_s(0.0, 0.0, None) > 0
    assert lasting_s(0.0, 0.0, 0.5) > 0
