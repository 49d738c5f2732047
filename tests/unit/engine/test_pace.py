"""Which split of the answers into batches is the fastest, against a simulated ring."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.pace import SIZES, Measured, Pace, Split

# Seconds of a batch of so many rows in one stage, as measured on one CPU (docs/benchmarks.md): a
# row alone goes by another way than two.
STEEP = {1: 0.0048, 2: 0.0163, 4: 0.0217, 8: 0.0280, 16: 0.0480}
SLOTS = 16


def steep(rows: int) -> float:
    low = max(size for size in STEEP if size <= rows)
    high = min((size for size in STEEP if size >= rows), default=low)
    if low == high:
        return STEEP[low]
    return STEEP[low] + (rows - low) / (high - low) * (STEEP[high] - STEEP[low])


def shared(rows: int) -> float:
    """Where reading the weights is nearly all, as on a GPU."""
    return 0.010 + 0.0003 * rows


def each(rows: int) -> float:
    """Where rows share nothing."""
    return 0.005 * rows


def learnt(depth: int, cost: Callable[[int], float], links_s: float, sample_s: float = 0.0) -> Pace:
    pace = Pace(depth)
    pace.learn(
        [Measured(n, cost(n), (depth - 1) * cost(n) + links_s) for n in SIZES if n <= SLOTS],
        links_s,
    )
    for _ in range(200):
        pace.took(1, cost(1), sample_s)
    return pace


def simulated_s(
    depth: int, cost: Callable[[int], float], links_s: float, decoding: int, split: Split
) -> float:
    """Return what a round takes when batches queue before each stage, after some rounds."""
    sizes = [
        decoding // split.batches + (n < decoding % split.batches) for n in range(split.batches)
    ]
    free, ready = [0.0] * depth, [0.0] * split.batches
    rounds = 40
    for turn in range(rounds):
        if turn == rounds // 2:
            half = max(ready)
        for batch, rows in enumerate(sizes):
            at = ready[batch]
            for stage in range(depth):
                at = free[stage] = max(at, free[stage]) + cost(rows)
                at += links_s / depth
            ready[batch] = at
    return (max(ready) - half) / (rounds - rounds // 2)


def test_before_anything_is_known_every_process_has_a_batch() -> None:
    pace = Pace(3)
    assert pace.split(7, 512) == Split(3, 3)
    assert pace.split(2, 512) == Split(3, 1)
    assert pace.split(0, 512) == Split(3, 1)
    assert Pace(2).split(9, 2) == Split(5, 2)


def test_where_one_row_is_cheap_and_two_are_dear_there_are_many_batches_of_one() -> None:
    assert learnt(2, steep, 0.001).split(8, 512) == Split(8, 1)
    assert learnt(1, steep, 0.0).split(2, 512).rows == 1
    assert learnt(1, steep, 0.0).split(8, 512).rows == 8


def test_where_rows_share_the_weights_there_are_as_many_batches_as_stages() -> None:
    assert learnt(2, shared, 0.0001).split(8, 512) == Split(2, 4)
    assert learnt(1, shared, 0.0).split(8, 512) == Split(1, 8)


def test_a_long_way_is_filled_with_more_batches() -> None:
    near, far = learnt(2, each, 0.0005), learnt(2, each, 0.080)
    assert near.split(8, 512).batches >= 2
    assert far.split(8, 512).batches > 2
    assert far.round_s(8, far.split(8, 512)) < 0.6 * far.round_s(8, Split(1, 8))


@settings(deadline=None)
@given(
    st.sampled_from([steep, shared, each]), st.integers(1, 4), st.integers(1, SLOTS),
    st.floats(0.0, 0.2),
)  # fmt: skip
def test_no_split_is_much_faster_than_the_one_chosen(
    cost: Callable[[int], float], depth: int, decoding: int, links_s: float
) -> None:
    if depth == 1:
        links_s = 0.0
    pace = learnt(depth, cost, links_s)
    split = pace.split(decoding, 512)
    assert split.batches * split.rows >= decoding
    took = simulated_s(depth, cost, links_s, decoding, split)
    best = min(
        simulated_s(depth, cost, links_s, decoding, Split(n, -(-decoding // n)))
        for n in range(1, decoding + 1)
    )
    assert took <= 1.12 * best


@given(st.integers(1, SLOTS), st.integers(1, 5), st.integers(1, 4))
def test_batches_are_never_larger_than_they_may_be(decoding: int, most: int, depth: int) -> None:
    for pace in (Pace(depth), learnt(depth, shared, 0.01)):
        split = pace.split(decoding, most)
        assert 1 <= split.rows <= most
        assert split.batches * split.rows >= decoding


def test_a_split_is_kept_unless_another_is_clearly_better() -> None:
    pace = learnt(2, each, 0.0)
    split = pace.split(6, 512)
    for _ in range(50):
        pace.took(split.rows, 1.02 * each(split.rows), 0.0)
        assert pace.split(6, 512) == split


def test_a_busier_machine_moves_all_sizes_and_so_leaves_the_split() -> None:
    pace = learnt(2, steep, 0.001)
    before = pace.round_s(8, Split(8, 1))
    for _ in range(200):
        pace.took(1, 2 * steep(1), 0.0)
    assert pace.round_s(8, Split(8, 1)) > 1.9 * before
    assert pace.split(8, 512) == Split(8, 1)


def test_dear_sampling_is_the_heads_own_work() -> None:
    cheap, dear = learnt(2, shared, 0.0), learnt(2, shared, 0.0, sample_s=0.050)
    assert dear.round_s(8, Split(2, 4)) - cheap.round_s(8, Split(2, 4)) > 7 * 0.050
