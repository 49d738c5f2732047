"""Which split of the answers into batches is the fastest, against a simulated ring."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.draft_costs import TRIAL_SHARE, DraftCosts
from agent.engine.pace import (
    CALIBRATION_S,
    HURRIED_S,
    SIZES,
    Calibration,
    Drafted,
    Measured,
    Pace,
    Split,
    widest_first,
)

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


def test_where_rows_cost_the_same_alone_they_share_what_our_own_code_takes() -> None:
    pace = learnt(2, each, 0.0005)
    assert pace.split(8, SLOTS).batches * pace.split(8, SLOTS).rows == 8
    for _ in range(200):
        pace.took(1, each(1), 0.0, 0.002)
    assert pace.split(8, SLOTS) == Split(2, 4)


def test_dear_sampling_is_the_heads_own_work() -> None:
    cheap, dear = learnt(2, shared, 0.0), learnt(2, shared, 0.0, sample_s=0.050)
    assert dear.round_s(8, Split(2, 4)) - cheap.round_s(8, Split(2, 4)) > 7 * 0.050


def drafting(pace: Pace, each_s: float) -> Pace:
    """Say that each row of a draft model takes so long, and two together half as long again."""
    pace.drafts.learn([(n, each_s * (1 + n) / 2) for n in (1, 2, 4, 8, 16, 64)])
    return pace


def drafted_s(
    depth: int, cost: Callable[[int], float], links_s: float, draft_s: float, hit: float,
    split: Split, tokens: int = 600,
) -> float:  # fmt: skip
    """Return how long a token of one answer takes in a simulated ring with guesses of a draft."""
    rng = random.Random(1)
    free = [0.0] * depth
    now, said = 0.0, 0
    flying: list[tuple[float, int]] = []  # when it is back, and how many rows it has
    fresh = True  # the next batch begins with a certain token
    while said < tokens:
        if len(flying) < split.batches:
            # The head makes guesses and computes its part; nothing else goes on there meanwhile.
            at = max(now, free[0]) + draft_s * (split.rows - fresh)
            fresh = False
            for stage in range(depth):
                at = free[stage] = max(at, free[stage]) + cost(split.rows)
                at += links_s / depth
            flying.append((at, split.rows))
            continue
        now, rows = flying.pop(0)
        for _ in range(rows):
            said += 1
            if rng.random() >= hit:
                flying, fresh = [], True
                break
    return now / said


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from([steep, shared, each]), st.integers(1, 4), st.floats(0.0, 0.2),
    st.floats(0.0001, 0.02), st.floats(0.05, 0.95),
)  # fmt: skip
def test_a_draft_model_never_makes_it_slower_and_helps_where_it_would_much(
    cost: Callable[[int], float], depth: int, links_s: float, draft_s: float, hit: float
) -> None:
    if depth == 1:
        links_s = 0.0
    pace = drafting(learnt(depth, cost, links_s), draft_s)
    split = pace.split(1, 512, 0.0, Drafted(hit, 1.0))
    without_s = depth * cost(1) + links_s
    if split.drafting:
        assert drafted_s(depth, cost, links_s, draft_s, hit, split) < without_s
        return
    possible = (Split(batches, rows) for batches in range(1, depth + 2) for rows in (1, 3, 6))
    assert without_s < 1.4 * min(
        drafted_s(depth, cost, links_s, draft_s, hit, other)
        for other in possible
        if other.batches * other.rows > 1 and (depth > 1 or other.batches == 1)
    )


def test_what_a_draft_model_takes_decides_whether_it_is_asked() -> None:
    for depth in (1, 3):
        cheap, dear = (drafting(learnt(depth, shared, 0.0), s) for s in (0.0005, 0.020))
        assert cheap.split(1, 512, 0.0, Drafted(0.8, 1.0)).drafting
        assert not dear.split(1, 512, 0.0, Drafted(0.8, 1.0)).guesses
        # A machine that is busier for the draft model alone.
        for _ in range(200):
            cheap.drafted(1, 0.020)
        assert not cheap.split(1, 512, 0.0, Drafted(0.8, 1.0)).guesses


def test_a_draft_model_must_be_clearly_better_than_n_grams() -> None:
    pace = drafting(learnt(1, shared, 0.0), 0.0005)
    split = pace.split(1, 512, 0.80, Drafted(0.80, 1.0))
    assert (split.guesses, split.drafting) == (True, False)
    assert pace.split(1, 512, 0.40, Drafted(0.90, 1.0)).drafting


def test_nothing_is_drafted_before_its_cost_is_known() -> None:
    pace = learnt(2, shared, 0.1)
    assert not pace.split(1, 512, 0.0, Drafted(0.9, 1.0)).guesses
    assert not pace.pays_back(10, 1000)
    assert not pace.drafts.may_try


def test_reading_a_prompt_has_to_pay_and_holds_nobody_up() -> None:
    pace = drafting(learnt(1, shared, 0.0), 0.0002)
    assert pace.pays_back(100, 1000)
    assert not pace.pays_back(1000, 10)
    assert pace.reading_rows(128) == 16, "a quarter of 10.3 ms, at 0.1 ms a row"
    assert drafting(learnt(1, shared, 0.0), 0.1).reading_rows(128) == 8


def test_trials_take_a_small_share_of_the_time() -> None:
    costs = DraftCosts()
    costs.learn([(1, 0.001)])
    assert not costs.may_try
    spent = 0.0
    for _ in range(10_000):
        costs.passed(0.010)
        if costs.may_try:
            costs.tried(0.007)
            spent += 0.007
    assert spent == pytest.approx(100 * TRIAL_SHARE, rel=0.01)
    costs.passed(1e6)
    tries = 0
    while costs.may_try:
        costs.tried(0.007)
        tries += 1
    assert tries < 50, "what was saved up while nothing was tried is bounded"


def calibrated(most: int, cost: Callable[[int], float], *, first_more: float = 1.0) -> Calibration:
    """Measure on a clock of its own; the first batch of a size takes `first_more` times as long."""
    calibration, now, seen = Calibration(most), 0.0, set()
    while (rows := calibration.next(now)) is not None:
        took = cost(rows) * (1.0 if rows in seen else first_more)
        seen.add(rows)
        now += took
        calibration.add(Measured(rows, took, 0.0))
    return calibration


def test_a_quick_model_has_all_sizes_measured_and_the_first_of_each_does_not_count() -> None:
    best = calibrated(SLOTS, shared, first_more=3.0).best
    assert sorted(each.rows for each in best) == [size for size in SIZES if size <= SLOTS]
    for measured in best:
        assert measured.own_s + measured.away_s == pytest.approx(shared(measured.rows))


def test_a_slow_model_has_the_least_and_the_largest_measured() -> None:
    """Beyond the largest that is known a batch would be taken to cost in proportion."""
    slow = [each.rows for each in calibrated(SLOTS, lambda rows: 300 * shared(rows)).best]
    assert slow == [1, SLOTS]
    pace = Pace(1)
    pace.learn(calibrated(SLOTS, lambda rows: 300 * shared(rows)).best, 0.0)
    assert pace.split(SLOTS, 512).batches == 1


@pytest.mark.parametrize("most", [1, 2, 5, SLOTS, 100])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 30.0])
def test_measuring_ends_soon_with_both_ends(most: int, scale: float) -> None:
    spent: list[float] = []

    def cost(rows: int) -> float:
        spent.append(scale * shared(rows))
        return spent[-1]

    sizes = {each.rows for each in calibrated(most, cost).best}
    assert {1, max(size for size in SIZES if size <= most)} <= sizes
    assert sum(spent) <= CALIBRATION_S + 5 * max(spent)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 30.0])
def test_while_a_request_waits_each_size_is_measured_once_and_the_rest_later(scale: float) -> None:
    calibration, now, seen = Calibration(SLOTS), 0.0, list[int]()
    while (rows := calibration.next(now, hurried=True)) is not None:
        now += scale * shared(rows)
        calibration.add(Measured(rows, scale * shared(rows), 0.0))
        seen.append(rows)
    assert seen[:2] == [1, SLOTS]
    assert len(seen) == len(set(seen))
    assert len(seen) == 2 or now <= HURRIED_S + scale * max(map(shared, seen))
    later = 0
    while (rows := calibration.next(now)) is not None:
        now += scale * shared(rows)
        calibration.add(Measured(rows, scale * shared(rows), 0.0))
        later += 1
    assert later or scale == 30.0
    assert now <= CALIBRATION_S + 5 * scale * shared(SLOTS)


def test_the_widest_gap_is_halved_first() -> None:
    assert widest_first([1, 2, 3, 4, 6, 8, 12, 16]) == [1, 16, 4, 8, 2, 3, 6, 12]
    assert widest_first([1]) == [1]
    assert widest_first([]) == []
