"""Random ports at a bounded rate, each once; pauses; turns; the course of an attempt."""

import random

from agent.identity.keys import NodeId
from agent.paths import outputs as out
from agent.paths.birthday import (
    HOLD_S,
    PAUSE_FIRST_S,
    PAUSE_MAX_S,
    PROBES_PER_S,
    SALVO_S,
    SOCKETS,
    Pauses,
    Salvo,
    Turns,
)
from agent.paths.chance import SETTLE_S, Chance
from agent.paths.credit import SALVOS_BURST, Credit
from agent.paths.own import Own

ME, PEER = NodeId(bytes([1]) * 32), NodeId(bytes([2]) * 32)
EASY, OTHER = ("203.0.113.9", 4000), ("203.0.113.9", 4001)


def shots(salvo: Salvo, end: float, step: float) -> list[int]:
    ports, now = [], 0.0
    while now <= end:
        ports += salvo.due(now)
        now += step
    return ports


def test_a_salvo_is_of_distinct_ports_at_its_rate() -> None:
    salvo = Salvo("203.0.113.1", random.Random(1), 0.0)
    ports = shots(salvo, SALVO_S, 0.005)
    assert len(ports) == len(set(ports))
    assert abs(len(ports) - SALVO_S * PROBES_PER_S) <= 2
    assert all(1024 <= port < 65536 for port in ports)
    assert not salvo.over(SALVO_S)
    assert salvo.over(SALVO_S + 0.01)


def test_a_salvo_that_was_kept_waiting_makes_no_burst() -> None:
    salvo = Salvo("203.0.113.1", random.Random(1), 0.0)
    assert len(salvo.due(3.0)) <= 20
    assert len(salvo.due(3.1)) <= 21


def test_two_attempts_in_three_hit_within_a_second_and_a_half() -> None:
    hits = 0
    for seed in range(200):
        rng = random.Random(seed)
        held = set(rng.sample(range(1024, 65536), SOCKETS))
        hits += bool(held & set(shots(Salvo("203.0.113.1", rng, 0.0), 1.5, 0.01)))
    assert 120 <= hits <= 160  # 1 - (1 - 256/64512)^300 = 70 %


def test_pauses_double_and_end() -> None:
    pauses, now, waits = Pauses(), 0.0, []
    for _ in range(10):
        assert pauses.next_at <= now
        pauses.begin(now)
        waits.append(pauses.next_at - now - HOLD_S)
        now = pauses.next_at
    assert waits[:3] == [PAUSE_FIRST_S, 2 * PAUSE_FIRST_S, 4 * PAUSE_FIRST_S]
    assert waits[-1] == PAUSE_MAX_S
    assert pauses.attempt == 10
    pauses.reset()
    assert pauses.next_at == 0.0


def test_turns_are_few_and_given_back() -> None:
    turns = Turns(2)
    assert [turns.take(who) for who in "aabc"] == [True, True, True, False]
    turns.give_back("a")
    assert turns.take("c")


def chance() -> tuple[Chance, list[out.Output]]:
    done: list[out.Output] = []
    own = Own(ME, 1, random.Random(1), done.append, lambda now: None)
    return Chance(PEER, own, Credit()), done


def test_the_hard_side_from_sockets_to_a_rule() -> None:
    made, done = chance()
    assert made.begin(EASY, 0.0)
    assert made.attempt == 1
    assert not made.heard(OTHER, 30000, 0.5), "from a place that nobody was asked at"
    assert made.heard(EASY, 30001, 0.6)
    assert not made.heard(EASY, 30002, 0.7), "one rule is enough"
    made.settled(EASY)
    assert done == [
        out.StartBirthday(PEER, EASY, SOCKETS),
        out.AddSnat(PEER, EASY, 30001),
        out.StopBirthday(PEER),
    ]
    made.path_failed(OTHER, 20.0)
    assert len(done) == 3
    made.path_failed(EASY, 20.0)
    assert done[3:] == [out.RemoveSnat(PEER, EASY, 30001)]


def test_a_hit_that_does_not_become_a_path_makes_way_for_the_next() -> None:
    made, done = chance()
    made.begin(EASY, 0.0)
    made.heard(EASY, 30001, 1.0)
    made.tick(1.0 + SETTLE_S)
    assert done[-1] == out.RemoveSnat(PEER, EASY, 30001)
    assert made.heard(EASY, 30002, 5.0)
    made.tick(HOLD_S)
    assert done[-2:] == [out.RemoveSnat(PEER, EASY, 30002), out.StopBirthday(PEER)]
    assert not made.trying


def test_a_direct_path_to_another_place_needs_no_rule() -> None:
    made, done = chance()
    made.begin(EASY, 0.0)
    made.heard(EASY, 30001, 1.0)
    made.settled(OTHER)
    assert done[-2:] == [out.RemoveSnat(PEER, EASY, 30001), out.StopBirthday(PEER)]


def test_the_easy_side_answers_each_attempt_once() -> None:
    made, _ = chance()
    assert made.shoot(1, "203.0.113.1", 0.0)
    assert not made.shoot(2, "203.0.113.1", 1.0), "one at a time"
    made.tick(SALVO_S + 0.1)
    assert made.salvo is None
    assert not made.shoot(1, "203.0.113.1", 9.0)
    assert made.shoot(2, "203.0.113.1", 9.0)


def test_attempts_that_do_not_hit_are_few_whatever_the_peer_tells() -> None:
    made, _ = chance()
    shot = 0
    for attempt in range(1, 101):
        shot += made.shoot(attempt, "203.0.113.1", 9.0 * attempt)
        made.tick(9.0 * attempt + SALVO_S + 0.1)
    assert SALVOS_BURST <= shot <= SALVOS_BURST + 900 / 300


def test_attempts_that_hit_cost_nothing() -> None:
    made, _ = chance()
    for attempt in range(1, 101):
        assert made.shoot(attempt, EASY[0], 9.0 * attempt)
        made.settled(EASY)
    assert made.shoot(101, EASY[0], 1000.0)
    made.settled(("198.51.100.1", 7))
    for attempt in range(102, 110):  # it answers elsewhere: that is no hit
        made.shoot(attempt, EASY[0], 1000.0)
        made.settled(("198.51.100.1", 7))
    assert not made.shoot(110, EASY[0], 1000.0)


def test_an_attempt_waits_for_its_turn() -> None:
    done: list[out.Output] = []
    own = Own(ME, 1, random.Random(1), done.append, lambda now: None)
    first, second, third = (Chance(PEER, own, Credit()) for _ in range(3))
    assert [c.begin(EASY, 0.0) for c in (first, second, third)] == [True, True, False]
    first.close()
    assert third.begin(EASY, 0.1)
