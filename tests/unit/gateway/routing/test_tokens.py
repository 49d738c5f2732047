"""Bytes for each token of a prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.tokens import BYTES_PER_TOKEN, BytesPerToken


@given(ratio=st.floats(1, 8), tokens=st.lists(st.integers(1, 5000), min_size=60, max_size=80))
def test_bytes_for_each_token_are_learned(ratio: float, tokens: list[int]) -> None:
    made = BytesPerToken()
    assert made.value == BYTES_PER_TOKEN
    for count in tokens + [2000] * 20:
        made.learn(int(ratio * count), count)
    assert made.value == pytest.approx(ratio, rel=0.1)


@given(samples=st.lists(st.tuples(st.integers(-5, 10**9), st.integers(-5, 10**9)), max_size=20))
def test_nonsense_stays_within_bounds(samples: list[tuple[int, int]]) -> None:
    made = BytesPerToken()
    for size, count in samples:
        made.learn(size, count)
        assert 0.5 <= made.value <= 16
