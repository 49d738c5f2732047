"""How long a neighbour may be silent: never too short, never without an end, and by its link."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from agent.engine.silence import LEAST_S, Known, Silence

MOST_S = 30.0
PING_S = 0.2
# A minute of words in time: the link is known.
KNOWN = 300

gaps = st.lists(st.floats(0.0, 60.0), max_size=200)
rtts = st.floats(0.0, 5.0)


def after(*stretches: tuple[int, float]) -> tuple[Silence, float]:
    """Return what is known after (how many words, how far apart), and the time of the last."""
    now = 100.0
    silence = Silence(LEAST_S, MOST_S, PING_S, now)
    for count, apart_s in stretches:
        for _ in range(count):
            now += apart_s
            silence.heard(now)
    return silence, now


@given(gaps, rtts, st.floats(0.1, 60.0), st.floats(0.1, 60.0))
def test_nobody_is_lost_within_the_least_nor_alive_beyond_the_most(
    found: list[float], rtt_s: float, least_s: float, most_s: float
) -> None:
    now = 50.0
    silence = Silence(least_s, most_s, least_s / 8, now)
    for gap in found:
        now += gap
        silence.heard(now)
    least_s = min(least_s, most_s)
    assert least_s <= silence.bound_s(rtt_s) <= most_s
    assert not silence.too_long(now + 0.999 * least_s, rtt_s)
    assert silence.too_long(now + 1.001 * most_s, rtt_s)


@given(gaps, rtts, st.floats(0.0, 60.0))
def test_who_is_lost_stays_lost_until_it_is_heard(
    found: list[float], rtt_s: float, more_s: float
) -> None:
    silence, now = after(*((1, gap) for gap in found))
    lost = now + 1.001 * silence.bound_s(rtt_s)
    assert silence.too_long(lost + more_s, rtt_s)
    silence.heard(lost + more_s)
    assert not silence.too_long(lost + more_s, rtt_s)


def test_before_the_first_word_there_is_time_to_come() -> None:
    silence = Silence(LEAST_S, MOST_S, PING_S, 40.0)
    assert not silence.met
    assert not silence.too_long(10.0)  # it need not have come yet
    assert not silence.too_long(69.0)
    assert silence.too_long(71.0)


def test_a_link_whose_words_come_in_time_is_given_the_least() -> None:
    silence, _ = after((KNOWN, PING_S))
    assert silence.bound_s() == LEAST_S
    # One word that TCP repeated once a minute changes nothing.
    silence, _ = after((KNOWN, PING_S), (1, 0.45), (KNOWN, PING_S), (1, 0.45))
    assert silence.bound_s() == LEAST_S


def test_a_new_link_survives_the_fourth_repetition_and_a_known_one_the_third() -> None:
    silence, now = after((1, PING_S))
    assert not silence.too_long(now + PING_S + 2.99)
    silence, now = after((40, PING_S))
    assert not silence.too_long(now + PING_S + 1.39)
    assert silence.too_long(now + LEAST_S + 0.01)


@given(st.floats(0.0, 0.5))
def test_a_long_link_is_given_its_third_repetition(rtt_s: float) -> None:
    silence, now = after((KNOWN, PING_S))
    third_s = 7 * (0.2 + rtt_s)
    assert not silence.too_long(now + PING_S + third_s - 1e-6, rtt_s)
    assert silence.bound_s(rtt_s) <= PING_S + third_s + LEAST_S


def test_a_link_that_stalls_for_two_seconds_is_known_after_the_first() -> None:
    """On a new link the first such stall is let pass, and later ones for minutes."""
    silence, now = after((5, PING_S))
    for _ in range(20):
        assert not silence.too_long(now + 2.2)
        now += 2.2
        silence.heard(now)
        for _ in range(100):
            now += PING_S
            silence.heard(now)
    assert 4.0 < silence.bound_s() < 8.0


def test_what_a_link_showed_is_forgotten_in_some_minutes() -> None:
    silence, _ = after((5, PING_S), (5, 2.0), (3 * KNOWN, PING_S))
    assert LEAST_S < silence.bound_s() < 4.5
    silence, _ = after((5, PING_S), (5, 2.0), (40 * KNOWN, PING_S))
    assert silence.bound_s() == LEAST_S


def test_a_pause_of_our_own_is_not_held_against_anybody() -> None:
    silence, now = after((KNOWN, PING_S))
    silence.excuse(50.0, now + 50.0)
    assert not silence.too_long(now + 50.0)
    silence.heard(now + 50.0)
    assert silence.bound_s() == LEAST_S
    silence.excuse(1.0, now + 50.5)  # no more than the silence itself
    assert silence.silent_s(now + 50.5) == 0.0


def tcp_gaps(rng: random.Random, lost: float, words: int) -> list[float]:
    """Return the pauses between words where each is lost, and each repetition, with a chance."""
    found = []
    for _ in range(words):
        pause_s, repeat_s = PING_S, 0.2
        while rng.random() < lost:
            pause_s += repeat_s
            repeat_s *= 2
        found.append(pause_s)
    return found


def false_alarms(lost: float, links: int, words: int) -> int:
    """Return on how many of so many new links somebody who lives is taken to be lost."""
    alarms = 0
    for seed in range(links):
        silence, now = after((1, PING_S))
        for gap in tcp_gaps(random.Random(seed), lost, words):
            # Beyond the most nothing can be told from death.
            if gap < MOST_S and silence.too_long(now + gap):
                alarms += 1
                break
            now += gap
            silence.heard(now)
    return alarms


def test_who_lives_behind_a_link_that_loses_much_is_rarely_taken_to_be_lost() -> None:
    assert false_alarms(0.01, 300, 1000) == 0
    assert false_alarms(0.05, 300, 1000) <= 3
    assert false_alarms(0.2, 300, 1000) <= 15


# ------------------------------------------------------------------ from one ring to the next


def next_ring(known: Known | None, since: float) -> Silence:
    """Return a new ring's silence on a link that is known, after the neighbour's first word."""
    silence = Silence(LEAST_S, MOST_S, PING_S, since, known)
    assert silence.bound_s() == MOST_S, "the neighbour has not come yet"
    silence.heard(since)
    return silence


FRESH_S = next_ring(None, 0.0).bound_s()


def test_a_link_that_was_late_is_given_time_in_the_next_ring_too() -> None:
    bad, now = after((KNOWN, PING_S), (60, 0.6))
    after_it = next_ring(bad.known, now + 5)
    assert after_it.bound_s() > 2 * FRESH_S
    assert after_it.bound_s() <= bad.bound_s()
    # It learns on from there: a minute in time, and it is one like the others.
    for _ in range(2 * KNOWN):
        now += PING_S
        after_it.heard(now + 5)
    assert after_it.bound_s() < FRESH_S


def test_a_link_that_was_good_has_to_show_it_anew() -> None:
    good, now = after((KNOWN, PING_S))
    assert good.bound_s() < FRESH_S
    assert next_ring(good.known, now + 1).bound_s() == FRESH_S


def test_what_is_long_ago_is_forgotten() -> None:
    bad, now = after((KNOWN, 0.6), (1, 5.0))
    bounds = [next_ring(bad.known, now + later).bound_s() for later in (1, 60, 300, 1200, 6 * 3600)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] >= 14.9  # three times the gap
    assert bounds[-1] == FRESH_S


@given(gaps, st.floats(0.0, 1e4))
def test_nothing_that_is_known_makes_a_new_ring_less_patient(
    found: list[float], later_s: float
) -> None:
    silence, now = after(*((1, gap) for gap in found))
    assert next_ring(silence.known, now + later_s).bound_s() >= FRESH_S


@given(st.lists(gaps, min_size=2, max_size=2))
def test_a_neighbour_on_both_sides_is_as_late_as_its_later_side_at_most(
    found: list[list[float]],
) -> None:
    one, other = (after(*((1, gap) for gap in each))[0].known for each in found)
    if one is None or other is None:
        assert min(len(each) for each in found) < 2
        return
    both = one.together(other)
    assert min(one.late, other.late) - 1e-9 <= both.late <= max(one.late, other.late) + 1e-9
    assert both.gap_s == max(one.gap_s, other.gap_s)
    assert both.words == one.words + other.words
