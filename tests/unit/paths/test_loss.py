"""The loss of a path, by its pings alone."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.paths.loss import OUTAGE, WAIT_S, Loss


def pinged(lost: list[bool], gap_s: float, rtt_s: float) -> Loss:
    """Return what comes of pings at even distances; those that are not lost are answered."""
    loss, answers = Loss(), []
    for number, gone in enumerate(lost):
        at = number * gap_s
        for sent_at in [sent for sent in answers if sent + rtt_s <= at]:
            loss.answered(sent_at, sent_at + rtt_s)
            answers.remove(sent_at)
        loss.asked(at)
        if not gone:
            answers.append(at)
    for sent_at in answers:
        loss.answered(sent_at, sent_at + rtt_s)
    return loss


@given(
    st.lists(st.booleans(), max_size=200), st.floats(0.05, 20.0), st.floats(0.0001, WAIT_S - 0.01)
)
def test_it_is_a_share_and_nothing_where_all_are_answered(
    lost: list[bool], gap_s: float, rtt_s: float
) -> None:
    assert 0.0 <= pinged(lost, gap_s, rtt_s).share < 1.0
    assert pinged([False] * len(lost), gap_s, rtt_s).share == 0.0


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from([0.4, 14.0]))
def test_it_comes_near_to_the_share_that_vanishes(seed: int, share: float, gap_s: float) -> None:
    rng = random.Random(seed)
    found = [pinged([rng.random() < share for _ in range(400)], gap_s, 0.04).share
             for _ in range(20)]  # fmt: skip
    assert abs(sum(found) / len(found) - share) < 0.05


def test_pings_before_the_first_answer_and_outages_are_no_loss() -> None:
    unopened = pinged([True] * 30 + [False] * 10, 0.4, 0.02)
    assert unopened.share == 0.0
    outage = pinged([False] * 20 + [True] * (OUTAGE + 1) + [False] * 20, 3.0, 0.02)
    assert outage.share == 0.0
    some = pinged([False] * 20 + [True] * 2 + [False] * 2, 3.0, 0.02)
    assert 0.05 < some.share < 0.15


def test_what_is_under_way_when_a_path_fails_is_not_counted() -> None:
    loss = pinged([False] * 5, 1.0, 0.02)
    loss.asked(5.0)
    loss.asked(6.0)
    loss.broken()
    loss.asked(20.0)
    loss.answered(20.0, 20.1)
    assert loss.share == 0.0
