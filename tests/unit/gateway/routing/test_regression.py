"""A known law is found again, from whatever order of samples, and outliers and changes are met."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing.regression import Regression

SHAPE = (1.0, 4.0, 1.0)


def fed(
    law: tuple[float, ...], samples: int, *, noise: float = 0.0, outliers: float = 0.0,
    seed: int = 1,
) -> Regression:  # fmt: skip
    random, made = Random(seed), Regression(SHAPE, 0.1)
    for number in range(samples):
        x = (1.0, random.uniform(0, 4), float(random.randrange(8)))
        y = sum(c * part for c, part in zip(law, x, strict=True))
        y *= 1 + random.uniform(-noise, noise)
        if random.random() < outliers:
            y *= 30
        made.learn(x, y, number * 1.0)
    return made


@settings(max_examples=40, deadline=None)
@given(
    law=st.tuples(st.floats(0.001, 2), st.floats(0.01, 20), st.floats(0, 2)),
    seed=st.integers(0, 1000),
)
def test_a_known_law_is_found_again(law: tuple[float, float, float], seed: int) -> None:
    made = fed(law, 200, noise=0.05, seed=seed)
    for x in ((1.0, 0.5, 1.0), (1.0, 3.0, 0.0), (1.0, 2.0, 7.0)):
        expected = sum(c * part for c, part in zip(law, x, strict=True))
        assert made.predict(x) == pytest.approx(expected, rel=0.15)


def test_a_single_sample_sets_the_size() -> None:
    made = Regression(SHAPE, 0.1)
    assert made.predict((1.0, 1.0, 1.0)) == pytest.approx(0.6)
    made.learn((1.0, 1.0, 1.0), 12.0, 0.0)
    assert made.predict((1.0, 1.0, 1.0)) == pytest.approx(12.0, rel=0.01)
    assert made.predict((1.0, 0.0, 0.0)) == pytest.approx(2.0, rel=0.2)
    assert made.scale == pytest.approx(2.0)


def test_outliers_weigh_little() -> None:
    law = (0.1, 0.5, 0.05)
    made = fed(law, 300, noise=0.1, outliers=0.03)
    assert made.predict((1.0, 1.0, 2.0)) == pytest.approx(0.7, rel=0.35)


def test_a_changed_law_is_followed() -> None:
    made = fed((0.1, 0.5, 0.05), 200)
    random = Random(3)
    for number in range(200):
        x = (1.0, random.uniform(0, 4), float(random.randrange(8)))
        made.learn(x, 5 * (0.1 + 0.5 * x[1] + 0.05 * x[2]), 200.0 + number)
    assert made.predict((1.0, 1.0, 2.0)) == pytest.approx(3.5, rel=0.15)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(
        st.tuples(st.floats(0, 50), st.floats(0, 500), st.floats(1e-6, 1e4), st.floats(0, 1e5)),
        min_size=1, max_size=40,
    )
)  # fmt: skip
def test_whatever_is_learned_no_prediction_is_negative_or_no_number(
    samples: list[tuple[float, float, float, float]],
) -> None:
    made, now = Regression(SHAPE, 0.1), 0.0
    for tokens, load, seconds, later in samples:
        now += later
        made.learn((1.0, tokens, load), seconds, now)
        assert all(0 <= c < 1e9 for c in made.coefficients)
        assert made.predict((1.0, 1.0, 1.0)) >= 0
