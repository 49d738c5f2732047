"""The trend by which `tests/bench/soak.py` tells what grows from what goes up and down."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHES = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def trends() -> Iterator[Any]:
    sys.path.append(str(BENCHES))
    try:
        yield importlib.import_module("soaklab.trend")
    finally:
        sys.path.remove(str(BENCHES))


def test_a_leak_is_seen_through_noise_and_outliers(trends: Any) -> None:
    chance = random.Random(1)
    samples = [(20.0 * n, 60 + n * 20 / 3600 * 6 + chance.uniform(-1, 1)) for n in range(180)]
    for number in range(0, 180, 5):  # every fifth is taken while much is done
        samples[number] = (samples[number][0], 500.0)
    found = trends.trend(samples)
    assert found is not None
    assert found.over_s == 179 * 20
    assert 4 < found.rise < 8  # 6 MiB an hour


def test_what_goes_up_and_down_has_no_trend(trends: Any) -> None:
    samples = [(20.0 * n, 60.0 + n % 4) for n in range(180)]
    found = trends.trend(samples)
    assert found is not None
    assert abs(found.rise) < 0.5


def test_one_step_early_on_is_no_leak(trends: Any) -> None:
    samples = [(20.0 * n, 60.0 if n < 20 else 63.0) for n in range(180)]
    found = trends.trend(samples)
    assert found is not None
    assert found.rise == 0


@pytest.mark.parametrize("count", range(4))
def test_too_few_samples_are_no_trend(trends: Any, count: int) -> None:
    assert trends.trend([(float(n), 1.0) for n in range(count)]) is None


def test_samples_of_one_moment_are_no_trend(trends: Any) -> None:
    assert trends.trend([(1.0, float(n)) for n in range(9)]) is None
