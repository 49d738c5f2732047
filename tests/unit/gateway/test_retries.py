"""The budget of retries, and how long to wait before one."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gateway.retries import BACKOFF_FIRST_S, BACKOFF_MOST_S, Budget, backoff_s


def test_when_all_fails_a_fifth_more_is_asked() -> None:
    budget = Budget(0.2, 100.0)
    retried = 0
    for _ in range(10_000):
        budget.request()
        retried += sum(budget.take() for _ in range(2))
    assert 10_000 * 0.2 - 1 <= retried <= 100.0 + 10_000 * 0.2


@given(retries=st.integers(0, 1000), seed=st.integers(0, 99))
def test_waits_are_bounded_and_random(retries: int, seed: int) -> None:
    random = Random(seed)
    waits = [backoff_s(retries, random) for _ in range(5)]
    assert all(0 <= wait <= min(BACKOFF_FIRST_S * 2.0**retries, BACKOFF_MOST_S) for wait in waits) \
        if retries < 100 else max(waits) <= BACKOFF_MOST_S  # fmt: skip
    assert len(set(waits)) == 5
