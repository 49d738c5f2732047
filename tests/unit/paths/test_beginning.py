"""WireGuard's first session with a peer: who begins, when again, and when it is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.paths.beginning import (
    AGAIN_GROWS,
    AGAIN_MOST_S,
    AGAIN_S,
    FOLLOW_MOST_S,
    FOLLOW_S,
    Beginning,
)


def test_who_leads_gives_wireguard_the_endpoint_at_once_and_who_follows_lets_it_come() -> None:
    assert Beginning(leads=True).used(0.1, proved=True, now=1.0) == 0.0
    assert Beginning(leads=False).used(0.1, proved=True, now=1.0) == pytest.approx(FOLLOW_S + 0.2)
    assert Beginning(leads=False).used(3.0, proved=True, now=1.0) == FOLLOW_MOST_S


def test_with_a_session_nothing_waits_and_nothing_begins_again() -> None:
    for leads in (True, False):
        made = Beginning(leads=leads)
        made.used(0.1, proved=False, now=1.0)
        made.seen(True, proved=True, now=1.1)
        assert made.used(0.1, proved=True, now=2.0) == 0.0
        assert not made.proved(3.0)
        assert not made.seen(True, proved=True, now=99.0)


def test_what_went_over_an_unproved_relay_is_sent_again_once_it_answers() -> None:
    made = Beginning(leads=True)
    made.used(None, proved=False, now=1.0)
    assert made.proved(2.0)
    assert not made.proved(2.1)
    follows = Beginning(leads=False)
    follows.used(None, proved=False, now=1.0)
    assert not follows.proved(2.0), "the peer begins"


def test_an_unproved_path_is_not_begun_again_on() -> None:
    made = Beginning(leads=True)
    made.used(None, proved=False, now=1.0)
    assert not made.seen(False, proved=False, now=50.0)


@given(
    leads=st.booleans(),
    rtt=st.floats(0.001, 2.0),
    looks=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=60),
)
def test_it_begins_again_ever_less_often(leads: bool, rtt: float, looks: list[float]) -> None:
    made = Beginning(leads=leads)
    made.used(rtt, proved=True, now=0.0)
    now, last, gaps = 0.0, 0.0, []
    for pause in looks:
        now += pause
        if made.seen(False, proved=True, now=now):
            gaps.append(now - last)
            last = now
    least = max(AGAIN_S, 3 * rtt)
    for gap in gaps:
        assert gap >= least - 1e-6
        least = min(AGAIN_GROWS * least, AGAIN_MOST_S)
