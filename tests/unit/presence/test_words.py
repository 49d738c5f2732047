"""Words of members: the newest of each counts, and what is old waits for what may be newer."""

import itertools
import random

import pytest

from agent.identity.keys import NodeId
from agent.presence.liveness import Liveness, State
from agent.presence.report import Beat, Doubt, Load, Models
from agent.presence.words import FRESH_S, HOLD_S, Word, Words

LOAD = Load(1, 1, 0.0, 0)
WALL = 1_800_000_000.0
ONE, OTHER = NodeId(bytes([1]) * 32), NodeId(bytes([2]) * 32)


def beat(age_s: float, *, leaving: bool = False) -> Beat:
    return Beat(WALL - age_s, LOAD, leaving=leaving)


def test_what_is_fresh_is_acted_on_at_once_and_once() -> None:
    words = Words()
    assert words.take(ONE, beat(FRESH_S - 1), 0.0, WALL)
    assert not words.take(ONE, beat(FRESH_S - 1), 0.0, WALL)
    assert words.take(ONE, beat(1.0, leaving=True), 0.0, WALL)
    assert words.due(1000.0) == []


def test_what_was_said_before_a_goodbye_changes_nothing_after_it() -> None:
    words = Words()
    assert words.take(ONE, beat(1.0, leaving=True), 0.0, WALL)
    assert not words.take(ONE, beat(2.0), 0.0, WALL)
    assert not words.take(ONE, Models(WALL - 2.0), 0.0, WALL)
    assert words.has_left(ONE, WALL - 2.0)
    assert not words.has_left(ONE, WALL)
    # It has started again.
    assert words.take(ONE, beat(0.5), 0.0, WALL)


def test_of_old_words_the_newest_is_acted_on_whatever_the_order() -> None:
    history = [beat(110.0), beat(80.0, leaving=True), beat(60.0), beat(20.0)]
    for order in itertools.permutations(history):
        words = Words()
        for after, word in enumerate(order):
            assert not words.take(ONE, word, after / 4, WALL + after / 4)
        assert words.due(HOLD_S - 0.01) == []
        held = words.due(HOLD_S + 1.0)
        assert [each.word for each in held] == [history[-1]]
        assert held[0].written == pytest.approx(-20.0)


def test_a_fresh_word_takes_the_place_of_what_is_held() -> None:
    words = Words()
    assert not words.take(ONE, beat(50.0, leaving=True), 0.0, WALL)
    assert words.take(ONE, beat(1.0), 1.0, WALL)
    assert words.due(100.0) == []


def test_an_old_goodbye_ends_what_is_held_from_before_it() -> None:
    words = Words()
    assert not words.take(ONE, Models(WALL - 50.0), 0.0, WALL)
    assert not words.take(ONE, beat(40.0, leaving=True), 0.0, WALL)
    assert [held.word for held in words.due(HOLD_S)] == [beat(40.0, leaving=True)]


def test_an_old_doubt_counts_unless_who_was_doubted_wrote_since() -> None:
    doubt = Doubt(WALL - 50.0, OTHER.ed25519)
    for age_s, stands in ((60.0, True), (40.0, False)):
        words = Words()
        assert not words.take(ONE, doubt, 0.0, WALL)
        words.take(OTHER, beat(age_s), 0.0, WALL)
        assert (doubt in [held.word for held in words.due(HOLD_S)]) is stands
    words = Words()
    assert not words.take(ONE, doubt, 0.0, WALL)
    words.wrote(OTHER, WALL - 1.0)
    assert words.due(HOLD_S) == []
    assert words.take(ONE, Doubt(WALL - 1.0, OTHER.ed25519), 0.0, WALL)


def test_a_clock_that_was_ahead_does_not_silence_its_node() -> None:
    words = Words()
    assert words.take(ONE, beat(-200.0, leaving=True), 0.0, WALL)
    assert words.take(ONE, beat(0.0), 0.0, WALL)


@pytest.mark.parametrize("age_s", [172_800.0, -172_800.0])
def test_a_clock_differs_where_every_members_does(age_s: float) -> None:
    words = Words()
    assert not words.clock_differs(), "nobody was heard"
    words.take(ONE, beat(age_s), 0.0, WALL)
    assert words.clock_differs()
    words.take(OTHER, beat(100.0), 0.0, WALL)  # gossip that was kept for a newcomer
    assert not words.clock_differs(), "one of the others is wrong"
    words.keep({ONE})
    assert words.clock_differs()


def test_those_who_are_no_members_are_forgotten() -> None:
    words = Words()
    words.take(ONE, beat(50.0), 0.0, WALL)
    words.take(OTHER, beat(50.0), 0.0, WALL)
    words.keep({OTHER})
    assert [held.author for held in words.due(HOLD_S)] == [OTHER]


def test_a_newcomer_told_two_minutes_of_gossip_changes_its_mind_once_a_member_at_most() -> None:
    """Whatever the order in which it comes: `gone` for who left, nothing for all others."""
    restarted, left, steady = (NodeId(bytes([n]) * 32) for n in (11, 12, 13))
    history: list[tuple[NodeId, Word]] = [
        *((steady, beat(age)) for age in (115.0, 85.0, 55.0, 25.0)),
        (restarted, beat(100.0)), (restarted, beat(70.0, leaving=True)), (restarted, beat(65.0)),
        (left, beat(90.0)), (left, Models(WALL - 88.0)), (left, beat(80.0, leaving=True)),
        (steady, Doubt(WALL - 75.0, left.ed25519)),
        (left, Doubt(WALL - 95.0, restarted.ed25519)),
    ]  # fmt: skip
    for seed in range(200):
        rng = random.Random(seed)
        changes: list[tuple[NodeId, State]] = []
        liveness = Liveness(rng, lambda node, state, to=changes: to.append((node, state)))
        liveness.set_members([restarted, left, steady], 1000.0)
        words, now = Words(), 1000.0
        for author, word in rng.sample(history, len(history)):
            now += rng.uniform(0.0, 1.5 / len(history))
            assert not words.take(author, word, now, WALL + now - 1000.0)
        for held in words.due(now + HOLD_S):
            match held.word:
                case Doubt():
                    assert not liveness.doubt(NodeId(held.word.node), held.written)
                case Beat(leaving=True):
                    liveness.departed(held.author, held.written)
                case _:
                    liveness.heard(held.author, held.written)
        assert changes == [(left, State.GONE)]
