"""Back-off, and which connection stays."""

from __future__ import annotations

import itertools
from random import Random

from agent.control import redial
from agent.control.redial import Backoff, Candidate, rank, stays


def test_pauses_grow_up_to_a_minute_and_are_never_equal() -> None:
    backoff = Backoff(Random(1))
    pauses = [backoff.failed() for _ in range(40)]
    for n, pause in enumerate(pauses):
        middle = min(redial.MAX_DELAY_S, redial.FIRST_DELAY_S * 2**n)
        assert middle * 0.5 <= pause <= middle * 1.5
    assert len(set(pauses)) == len(pauses)
    assert backoff.ended(redial.STABLE_S + 1) <= redial.FIRST_DELAY_S
    assert backoff.failed() <= redial.FIRST_DELAY_S * 1.5


def test_a_connection_that_ends_at_once_is_a_failure() -> None:
    backoff = Backoff(Random(1))
    pauses = [backoff.ended(0.1) for _ in range(12)]
    assert max(pauses) > 20
    backoff.reset()
    assert backoff.failed() < 1


def test_both_ends_of_two_connections_keep_the_same_one() -> None:
    """Each end sees other times, and the same dialling sides."""
    for first, second, slip in itertools.product((True, False), (True, False), (-2.0, 0.0, 2.0)):
        ours = [Candidate(100.0, first), Candidate(101.0, second)]
        theirs = [Candidate(100.0 + slip, first), Candidate(101.0, second)]
        if first != second:
            assert stays(ours) == stays(theirs) == (0 if first else 1)


def test_a_later_connection_wins() -> None:
    assert stays([Candidate(100.0, True), Candidate(120.0, False)]) == 1
    assert stays([Candidate(120.0, False), Candidate(100.0, True)]) == 0
    assert stays([Candidate(1.0, False)]) == 0


def test_rank_is_the_place_of_the_host() -> None:
    wanted = ["[fd00::1]:4001", "192.0.2.7:4001", "node.example:4001"]
    assert rank("[fd00::1]:4001", wanted) == 0
    assert rank("[fd00:0::1]:53211", wanted) == 0
    assert rank("192.0.2.7:53211", wanted) == 1
    assert rank("[::ffff:192.0.2.7]:53211", wanted) == 1
    assert rank("node.example:4001", wanted) == 2
    assert rank("192.0.2.8:4001", wanted) == 3
    assert rank("", wanted) == 3
