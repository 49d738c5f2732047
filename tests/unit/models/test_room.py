"""Room: what goes for a new model, what never does, and what is said when it cannot be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import EnvironmentFault
from agent.models.room import RESERVE_BYTES, Stored, check_disk, evictions, size


def test_the_longest_unused_goes_first() -> None:
    stored = [Stored("new", 40, 3.0), Stored("old", 40, 1.0), Stored("middle", 40, 2.0)]
    assert evictions("x", 30, 120, stored) == ["old"]
    assert evictions("x", 50, 120, stored) == ["old", "middle"]
    assert evictions("x", 50, 0, stored) == []
    assert evictions("x", 0, 120, stored) == []
    assert evictions("old", 40, 120, stored) == []  # its part counts as itself


def test_what_is_used_or_pinned_stays_and_is_named() -> None:
    stored = [Stored("a", 60, 1.0, "used by chat"), Stored("b", 30, 2.0), Stored("c", 30, 3.0)]
    assert evictions("x", 30, 120, stored) == ["b"]
    with pytest.raises(EnvironmentFault, match=r"these stay: a \(used by chat\)") as caught:
        evictions("x", 70, 120, stored)
    assert "x has 70 B, which is 10 B too much" in caught.value.message


@given(
    st.lists(st.tuples(st.integers(1, 100), st.floats(0, 9), st.booleans()), max_size=12),
    st.integers(1, 300),
    st.integers(1, 500),
)
def test_it_fits_afterwards_and_nothing_that_stays_is_taken(
    models: list[tuple[int, float, bool]], needed: int, quota: int
) -> None:
    stored = [
        Stored(str(number), count, used_at, "pinned" if kept else "")
        for number, (count, used_at, kept) in enumerate(models)
    ]
    try:
        going = evictions("x", needed, quota, stored)
    except EnvironmentFault:
        assert needed + sum(model.size for model in stored if model.kept) > quota
        return
    rest = [model for model in stored if model.name not in going]
    assert needed + sum(model.size for model in rest) <= quota
    assert not any(model.kept for model in stored if model.name in going)
    youngest = max((m.used_at for m in stored if m.name in going), default=0.0)
    assert all(model.used_at >= youngest for model in rest if not model.kept)


def test_a_full_disk_says_what_is_needed_where() -> None:
    check_disk(10**9, 10**9 + RESERVE_BYTES, "/m")
    with pytest.raises(EnvironmentFault, match=r"5\.0 GB are needed in /m, and 1\.0 GB are free"):
        check_disk(5 * 10**9, 10**9, "/m")


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (43e9, "43 GB"), (2.5e6, "2.5 MB")],
)
def test_sizes(count: float, words: str) -> None:
    assert size(count) == words
