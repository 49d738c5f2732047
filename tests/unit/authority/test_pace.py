"""When, again when, and how often."""

from __future__ import annotations

import pytest

from agent.authority.pace import Allowance, Backoff, renew_at
from agent.identity.addresses import DEFAULT_IPV4_NETWORK
from agent.identity.keys import NodeKey
from agent.membership import issuer
from agent.membership.certificate import Certificate
from agent.membership.grant import Signer

ROOT = Signer.of_root(NodeKey(b"r" * 32))
NOW = 1_800_000_000.0
DAY_S = 86400


def certificate(number: int) -> Certificate:
    node = NodeKey(number.to_bytes(32, "big")).id
    return issuer.issue(ROOT, [], node, "pi", ["worker"], [], DEFAULT_IPV4_NETWORK, NOW)


def test_a_thousand_nodes_do_not_renew_at_once() -> None:
    times = [renew_at(certificate(number)) for number in range(1000)]
    assert min(times) >= NOW + 60 * DAY_S
    assert max(times) <= NOW + 64.5 * DAY_S
    per_minute: dict[int, int] = {}
    for time in times:
        per_minute[int(time // 60)] = per_minute.get(int(time // 60), 0) + 1
    assert max(per_minute.values()) <= 6
    assert times == [renew_at(certificate(number)) for number in range(1000)]


def test_backoff_doubles_up_to_its_end_and_begins_anew() -> None:
    backoff = Backoff(first_s=10, most_s=60)
    assert backoff.ready(NOW)
    waits, now = [], NOW
    for _ in range(5):
        backoff.failed(now, 0.5)
        assert not backoff.ready(now)
        wait = next(s for s in range(1, 200) if backoff.ready(now + s))
        waits.append(wait)
        now += wait
    assert waits == [10, 20, 40, 60, 60]
    backoff.succeeded()
    assert backoff.ready(now)


@pytest.mark.parametrize(("chance", "wait_s"), [(0.0, 5), (1.0, 15)])
def test_chance_parts_those_who_failed_together(chance: float, wait_s: int) -> None:
    backoff = Backoff(first_s=10, most_s=60)
    backoff.failed(NOW, chance)
    assert backoff.ready(NOW + wait_s) and not backoff.ready(NOW + wait_s - 1)


def test_a_clock_that_was_far_ahead_does_not_stop_it() -> None:
    backoff = Backoff(first_s=10, most_s=60)
    backoff.failed(NOW + 10**6, 0.5)
    assert backoff.ready(NOW)


def test_an_allowance_is_a_burst_and_a_rate() -> None:
    allowance = Allowance(burst=3, per_s=0.5, peers=10)
    assert [allowance.take("a", NOW) for _ in range(4)] == [True, True, True, False]
    assert allowance.take("b", NOW)
    assert [allowance.take("a", NOW + 2), allowance.take("a", NOW + 2)] == [True, False]
    assert [allowance.take("a", NOW + 1000) for _ in range(4)] == [True, True, True, False]
    assert not allowance.take("a", NOW - 1000)  # a clock that goes back gives nothing


def test_an_allowance_is_bounded() -> None:
    allowance = Allowance(burst=1, per_s=0.1, peers=100)
    for number in range(10_000):
        assert allowance.take(number, NOW)
    assert len(allowance) == 100
    assert not allowance.take(9_999, NOW)
