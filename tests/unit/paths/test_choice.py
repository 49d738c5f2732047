"""Which path is better, when a silent one is left, and when it is trusted again."""

import random

from agent.identity.keys import NodeId
from agent.paths.book import Book
from agent.paths.candidates import Surroundings
from agent.paths.choice import (
    GIVE_UP_S,
    RECEIVING_S,
    SETTLED_S,
    SWITCH_S,
    UNPROVED_S,
    better,
    too_silent,
)
from agent.paths.credit import Credit
from agent.paths.messages import Candidate, Kind, Place
from agent.paths.own import Own
from agent.paths.path import BURST_S, Path
from agent.paths.rhythm import ACTIVE_BYTES_PER_S, ACTIVE_S, FAST_S, IDLE_S, Rhythm

ME, PEER, RELAY = (NodeId(bytes([n]) * 32) for n in (1, 2, 3))
ONE, TWO = ("203.0.113.1", 1), ("203.0.113.2", 1)
SIX = ("2001:db8:9::1", 1)
SEEN = ("198.51.100.7", 7)


def book(*places: Place) -> Book:
    own = Own(ME, 1, random.Random(1), lambda output: None, lambda now: None)
    own.around = Surroundings()
    made = Book(PEER, own, Credit())
    made.set_candidates(tuple(Candidate.of(Kind.OBSERVED, place) for place in places), 0.0)
    return made


def answer(made: Book, place: Place, rtt: float, now: float) -> Path:
    path = made.get(place)
    assert path is not None
    path.asked(now - rtt)
    path.answered(now - rtt, SEEN, now)
    return path


def test_the_class_comes_before_the_rtt() -> None:
    made = book(ONE, SIX)
    slow, quick = answer(made, SIX, 0.2, 1.0), answer(made, ONE, 0.01, 1.0)
    assert better(made, None, None, 0.0, 1.0) is slow
    assert better(made, quick, None, 1.0, 1.0) is slow
    assert better(made, slow, None, 0.0, 100.0) is None


def test_among_equals_only_a_much_quicker_one_is_worth_a_move() -> None:
    made = book(ONE, TWO)
    used, other = answer(made, ONE, 0.10, 1.0), answer(made, TWO, 0.09, 1.0)
    assert better(made, used, None, 0.0, SETTLED_S + 1.0) is None
    answer(made, TWO, 0.01, 3.0)
    answer(made, TWO, 0.01, 3.5)
    assert better(made, used, None, 3.0, 3.5) is None, "it moved just now"
    assert better(made, used, None, 0.0, 3.5) is other


def test_the_nominated_one_is_followed_but_not_from_direct_to_a_relay() -> None:
    made = book(ONE, TWO)
    used, other = answer(made, ONE, 0.01, 1.0), answer(made, TWO, 0.09, 1.0)
    assert better(made, used, other, 1.0, 1.0) is other
    assert better(made, other, other, 0.0, 9.0) is None, "and stayed with, though it is slower"
    other.relay = RELAY
    assert better(made, used, other, 1.0, 1.0) is None


def test_one_that_does_not_answer_now_is_not_moved_to() -> None:
    made = book(ONE, SIX)
    used, other = answer(made, ONE, 0.01, 1.0), answer(made, SIX, 0.01, 1.0)
    assert better(made, used, None, 0.0, 10.0) is None, "it answered too long ago"
    other.asked(10.0)
    assert better(made, used, None, 0.0, 11.0) is None


def silent(made: Book, path: Path, since: float, until: float) -> None:
    now = since
    while now <= until:
        path.asked(now)
        now += FAST_S


def test_how_long_a_silent_path_is_kept() -> None:
    for receiving, with_other, limit in (
        (False, True, SWITCH_S),
        (False, False, GIVE_UP_S),
        (True, True, RECEIVING_S),
    ):
        made = book(ONE, TWO)
        used = answer(made, ONE, 0.01, 1.0)
        if with_other:
            answer(made, TWO, 0.01, 2.0)
        silent(made, used, 1.5, 1.5 + limit)
        just_before, just_after = 1.5 + limit - 0.01, 1.5 + limit + 0.01
        assert not too_silent(made, used, receiving=receiving, now=just_before)
        assert too_silent(made, used, receiving=receiving, now=just_after)


def test_a_few_lost_pings_are_no_silence() -> None:
    made = book(ONE)
    used = answer(made, ONE, 0.01, 1.0)
    used.asked(2.0)
    used.asked(2.5)
    assert not too_silent(made, used, receiving=False, now=30.0)


def test_a_relay_that_never_answered_is_kept_longer_unless_another_does() -> None:
    made = book(ONE, TWO)
    relay = made.get(ONE)
    assert relay is not None
    silent(made, relay, 1.0, 4.0)
    assert not too_silent(made, relay, receiving=False, now=4.0)
    assert too_silent(made, relay, receiving=False, now=1.0 + UNPROVED_S)
    answer(made, TWO, 0.01, 4.0)
    assert too_silent(made, relay, receiving=False, now=4.0)


def test_a_path_that_fails_again_and_again_waits_longer_each_time() -> None:
    path, now, waits = Path(ONE, Kind.OBSERVED), 0.0, []
    for _ in range(4):
        path.asked(now)
        path.fail(now)
        path.answered(now, SEEN, now + 0.1)
        waits.append(max(0.0, path.penalty_until - now))
        assert path.sound(now + 0.1) is (waits[-1] == 0.0)
        now += 1.0
    assert waits == [0.0, 4.0, 8.0, 16.0]
    path.fail(now + 1000.0)
    path.answered(now + 1000.0, SEEN, now + 1000.1)
    assert path.sound(now + 1000.1), "long ago is forgotten"


def test_a_burst_is_a_handful_and_is_not_prolonged_for_ever() -> None:
    path, now, sent = Path(ONE, Kind.OBSERVED), 0.0, 0
    path.burst(0.5)
    path.burst(0.2)
    assert path.next_at == 0.2
    while path.next_at < 100.0:
        now = path.next_at
        path.asked(now)
        sent += 1
    assert sent == len(BURST_S)
    assert now == 0.2 + BURST_S[-1]


def test_packets_that_get_no_answer_hasten_the_next_ping() -> None:
    made = book(ONE)
    used = answer(made, ONE, 0.01, 10.0)
    rhythm = Rhythm(random.Random(1))
    assert rhythm.hasten(used, 10.0) == float("inf")
    assert rhythm.after_answer(used, True, 10.0) >= 10.0 + 0.9 * IDLE_S
    rhythm.traffic(0, 0, True, 10.0)
    rhythm.traffic(2500, 2500, True, 10.1)
    assert rhythm.hasten(used, 10.1) == 10.0 + ACTIVE_S
    rhythm.traffic(2500, 2600, True, 10.2)
    rhythm.traffic(2500, 2700, True, 10.95)
    assert rhythm.hasten(used, 10.95) == 10.95
    rhythm.traffic(2600, 2800, True, 11.0)
    assert rhythm.hasten(used, 11.0) == 10.0 + ACTIVE_S


def test_what_flows_by_itself_is_no_traffic() -> None:
    made = book(ONE)
    used = answer(made, ONE, 0.01, 10.0)
    rhythm = Rhythm(random.Random(1))
    rhythm.traffic(0, 0, True, 5.0)
    quiet = int(4.5 * ACTIVE_BYTES_PER_S / 2)
    rhythm.traffic(quiet, quiet, True, 10.0)
    assert rhythm.hasten(used, 10.0) == float("inf")
    rhythm.traffic(quiet + 200, quiet + 200, True, 10.05)
    assert rhythm.hasten(used, 10.05) == float("inf"), "one message between two looks"
    rhythm.traffic(3 * quiet, 3 * quiet, True, 15.0)
    assert rhythm.hasten(used, 15.0) == 10.0 + ACTIVE_S


def test_a_path_whose_answers_vary_is_given_longer_and_an_even_one_no_longer() -> None:
    made = book(ONE, TWO)
    for n in range(40):
        even = answer(made, ONE, 0.02, 10.0 + n)
        uneven = answer(made, TWO, 0.02 if n % 2 else 0.8, 10.0 + n)
    assert even.timeout_s < 0.3
    assert 1.2 < uneven.timeout_s <= 2.5
    for n in range(40):
        answer(made, TWO, 0.02, 60.0 + n)
    assert uneven.timeout_s < 0.3, "it is quiet again"
