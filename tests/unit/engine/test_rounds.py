"""What rounds took decides between splits, where estimates were wrong."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.pace import SIZES, Measured, Pace, Split
from agent.engine.rounds import Rounds

STREAMS = 16


def rounds_of(
    rounds: Rounds, split: Split, decoding: int, round_s: float, count: int, now: float
) -> float:
    """Have so many rounds go round; returns when the last one is back."""
    for _ in range(count):
        left = decoding
        for batch in range(split.batches):
            rows = -(-left // (split.batches - batch))
            left -= rows
            rounds.sent(decoding, split)
            now += round_s / split.batches
            rounds.back(rows, now)
    return now


def test_the_first_round_does_not_count_and_the_least_of_the_next_is_told() -> None:
    rounds, split = Rounds(), Split(2, 4)
    now = rounds_of(rounds, split, 8, 5.0, 1, 0.0)
    now = rounds_of(rounds, split, 8, 1.0, 2, now)
    assert rounds.took_s(8, split) is None
    now = rounds_of(rounds, split, 8, 1.0, 1, now)
    assert abs((rounds.took_s(8, split) or 0.0) - 1.0) < 1e-9
    now = rounds_of(rounds, split, 8, 3.0, 3, now)
    assert abs((rounds.took_s(8, split) or 0.0) - 1.0) < 1e-9
    rounds_of(rounds, split, 8, 3.0, 9, now)
    assert abs((rounds.took_s(8, split) or 0.0) - 3.0) < 1e-9, "only the last ones count"
    assert rounds.took_s(7, split) is rounds.took_s(8, Split(4, 2)) is None


def test_whatever_comes_between_begins_anew() -> None:
    for other in (None, Split(8, 1)):
        rounds, split = Rounds(), Split(2, 4)
        now = rounds_of(rounds, split, 8, 1.0, 3, 0.0)
        rounds.sent(8, other)
        rounds.back(4, now + 9.0)
        now = rounds_of(rounds, split, 8, 1.0, 3, now + 9.0)
        assert rounds.took_s(8, split) is None
        rounds_of(rounds, split, 8, 1.0, 1, now)
        assert abs((rounds.took_s(8, split) or 0.0) - 1.0) < 1e-9


def test_what_was_seen_long_ago_is_not_known() -> None:
    rounds, split = Rounds(), Split(2, 4)
    now = rounds_of(rounds, split, 8, 1.0, 4, 0.0)
    rounds_of(rounds, Split(1, 1), 1, 0.1, 1_990, now)
    assert rounds.took_s(8, split) is not None
    rounds_of(rounds, Split(1, 1), 1, 0.1, 20, now)
    assert rounds.took_s(8, split) is None


@settings(deadline=None)
@given(
    st.integers(2, 4), st.integers(1, STREAMS), st.floats(0.0, 0.1),
    st.lists(st.floats(1.0, 3.0), min_size=STREAMS, max_size=STREAMS),
)  # fmt: skip
def test_estimates_that_are_too_good_are_found_out(
    depth: int, decoding: int, links_s: float, factors: list[float]
) -> None:
    """Each split takes what was estimated, times something that nobody knows before."""
    pace = Pace(depth)
    pace.learn([Measured(n, 0.005 + 0.001 * n, (depth - 1) * (0.005 + 0.001 * n) + links_s)
                for n in SIZES if n <= STREAMS], links_s)  # fmt: skip

    def really_s(split: Split) -> float:
        return pace.round_s(decoding, split) * factors[split.batches - 1]

    now, batches = 0.0, 0
    while batches < 1_500:  # before the first ones are forgotten, and tried again
        split = pace.split(decoding, 512)
        now = rounds_of(pace.rounds, split, decoding, really_s(split), 1, now)
        for _ in range(split.batches):
            pace.took(split.rows, 0.005 + 0.001 * split.rows, 0.0)
        batches += split.batches
    every = [Split(n, -(-decoding // n)) for n in range(1, decoding + 1)]
    best = min(really_s(split) for split in every if split.batches == -(-decoding // split.rows))
    assert really_s(pace.split(decoding, 512)) <= best / 0.94
