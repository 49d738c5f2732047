"""The verdict whether a node is reached: the core's rules, one by one."""

from __future__ import annotations

import pytest

from agent.discovery import reach as reach_module
from agent.discovery.reach import (
    AGAIN_MAX_S,
    AGAIN_MIN_S,
    ASSUMED_S,
    OPEN_S,
    Reach,
    Verdict,
    of_use,
    scope_of,
)

HOST, OTHER = "20.0.0.1", "20.0.0.2"
PROBE = b"12345678"
NOW = 1000.0


def verdict(reach: Reach, scope: str = "IPv4 global") -> Verdict:
    return reach.verdicts()[scope]


def after_a_test(*, testers: int, promised: int, came: int, reach: Reach | None = None) -> Reach:
    """Run a test whose probes come from hosts that were sent to."""
    reach = reach or Reach()
    reach.sent((HOST, 4001), NOW)
    reach.begin(HOST, PROBE, testers)
    for number in range(testers):
        reach.promised(HOST, number < promised, NOW)
    for number in range(came):
        reach.probed(PROBE, (HOST, 40000 + number), NOW)
    reach.conclude(HOST, NOW + 2)
    return reach


@pytest.mark.parametrize(
    ("host", "scope"),
    [
        ("127.0.0.1", "IPv4 loopback"),
        ("192.168.1.2", "IPv4 private"),
        ("100.64.0.1", "IPv4 private"),
        ("169.254.1.1", "IPv4 private"),
        ("20.0.0.1", "IPv4 global"),
        ("::ffff:20.0.0.1", "IPv4 global"),
        ("::1", "IPv6 loopback"),
        ("fd00::1", "IPv6 private"),
        ("fe80::1", "IPv6 private"),
        ("2600::1", "IPv6 global"),
    ],
)
def test_scopes(host: str, scope: str) -> None:
    assert scope_of(host) == scope


def test_addresses_of_one_site_are_of_no_use_to_another() -> None:
    lan, world, here = "IPv4 private", "IPv4 global", "IPv4 loopback"
    assert of_use(world, lan)
    assert of_use(lan, lan)
    assert of_use(lan, here)
    assert not of_use(lan, world)
    assert not of_use(here, lan)
    assert not of_use(here, world)


def test_before_any_test_it_does_not_serve_but_may_be_reachable() -> None:
    reach = Reach()
    assert not reach.serves(HOST)
    assert reach.reachable
    assert verdict(reach) is Verdict.UNTRIED


@pytest.mark.parametrize("word", [True, False])
def test_the_operators_word_is_not_tested(word: bool) -> None:
    reach = Reach(word)
    assert reach.serves(HOST) is word
    assert reach.reachable is word
    assert not reach.asked_from((HOST, 1), NOW)
    assert reach.due([HOST], NOW) is None
    assert not reach.any_due(NOW)


def test_a_question_from_a_stranger_proves_it_and_from_an_acquaintance_does_not() -> None:
    reach = Reach()
    reach.sent((OTHER, 4001), NOW)
    assert not reach.asked_from((OTHER, 9999), NOW + OPEN_S - 1)
    assert not reach.serves(HOST)
    assert reach.asked_from((HOST, 4001), NOW)
    assert reach.serves(HOST)
    assert not reach.asked_from((HOST, 4001), NOW), "nothing is new about it"


def test_on_one_machine_each_port_is_apart() -> None:
    reach = Reach()
    reach.sent(("127.0.0.1", 1), NOW)
    assert not reach.asked_from(("127.0.0.1", 1), NOW)
    assert reach.asked_from(("127.0.0.1", 2), NOW)


def test_after_a_while_an_acquaintance_is_a_stranger_again() -> None:
    reach = Reach()
    reach.sent((HOST, 4001), NOW)
    assert reach.asked_from((HOST, 4001), NOW + OPEN_S + 1)


def test_a_probe_from_a_host_never_sent_to_proves_it_at_once() -> None:
    reach = Reach()
    reach.begin(HOST, PROBE, 3)
    assert reach.testing(HOST)
    assert reach.probed(PROBE, (OTHER, 40000), NOW)
    assert verdict(reach) is Verdict.REACHED
    assert not reach.testing(HOST)


def test_a_probe_with_another_id_or_from_a_port_sent_to_proves_nothing() -> None:
    reach = Reach()
    reach.sent((HOST, 4001), NOW)
    reach.begin(HOST, PROBE, 1)
    reach.promised(HOST, True, NOW)
    assert not reach.probed(b"another!", (OTHER, 40000), NOW)
    assert not reach.probed(PROBE, (HOST, 4001), NOW)
    reach.conclude(HOST, NOW + 2)
    assert verdict(reach) is Verdict.CLIENT


@pytest.mark.parametrize(
    ("promised", "came", "expected"),
    [
        (3, 3, Verdict.REACHED),
        (2, 2, Verdict.REACHED),
        (3, 1, Verdict.CLIENT),
        (1, 0, Verdict.CLIENT),
        (0, 0, Verdict.ASSUMED),
    ],
)
def test_probes_from_hosts_that_were_sent_to_count_only_together(
    promised: int, came: int, expected: Verdict
) -> None:
    reach = after_a_test(testers=3, promised=promised, came=came)
    assert verdict(reach) is expected
    assert reach.serves(HOST) is (expected is not Verdict.CLIENT)


def test_a_probe_may_come_before_its_promise() -> None:
    reach = Reach()
    reach.sent((HOST, 4001), NOW)
    reach.begin(HOST, PROBE, 1)
    assert not reach.probed(PROBE, (HOST, 40000), NOW)
    assert reach.promised(HOST, True, NOW)
    assert verdict(reach) is Verdict.REACHED


def test_one_failed_test_does_not_undo_a_proof_but_two_do() -> None:
    reach = Reach()
    assert reach.asked_from((OTHER, 1), NOW)
    after_a_test(testers=1, promised=1, came=0, reach=reach)
    assert verdict(reach) is Verdict.REACHED
    assert reach.due([HOST], NOW + 2 + AGAIN_MIN_S) == HOST, "it is tested again soon"
    after_a_test(testers=1, promised=1, came=0, reach=reach)
    assert verdict(reach) is Verdict.CLIENT
    assert not reach.reachable


def test_a_client_is_tested_again_less_and_less_often() -> None:
    reach, waits = Reach(), []
    for _ in range(9):
        after_a_test(testers=1, promised=1, came=0, reach=reach)
        waits.append(next(s for s in range(1, 700) if reach.due([HOST], NOW + 2 + s) == HOST))
    assert waits == [5, 10, 20, 40, 80, 160, 320, 600, 600]
    reach.changed(NOW)
    assert reach.due([HOST], NOW) == HOST, "at once when the machine's addresses changed"


def test_what_was_proved_or_assumed_is_tested_again_in_time() -> None:
    reach = Reach()
    reach.asked_from((OTHER, 1), NOW)
    assert reach.due([HOST], NOW + AGAIN_MAX_S - 1) is None
    assert reach.any_due(NOW + AGAIN_MAX_S)
    assumed = after_a_test(testers=1, promised=0, came=0)
    assert assumed.due([HOST], NOW + 2 + ASSUMED_S) == HOST
    assert assumed.due([HOST], NOW + ASSUMED_S) is None


def test_a_new_address_of_ours_is_tested_at_once() -> None:
    reach = Reach()
    reach.asked_from((OTHER, 1), NOW)
    reach.seen_as(HOST, "20.9.9.9", NOW)
    assert reach.due([HOST], NOW) is None
    reach.seen_as(HOST, "20.9.9.9", NOW)
    assert reach.due([HOST], NOW) is None
    reach.seen_as(HOST, "20.9.9.10", NOW)
    assert reach.due([HOST], NOW) == HOST


def test_each_scope_has_its_own_verdict() -> None:
    reach = after_a_test(testers=1, promised=1, came=0)
    reach.asked_from(("192.168.1.2", 4001), NOW)
    assert reach.serves("192.168.7.7")
    assert not reach.serves(OTHER)
    assert reach.reachable


def test_what_is_remembered_is_bounded_and_forgetting_proves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reach_module, "SENT_MAX", 10)
    reach = Reach()
    for number in range(50):
        reach.sent((f"20.0.1.{number}", 4001), NOW)
    assert len(reach._sent) <= 10
    assert not reach.asked_from(("20.0.1.0", 4001), NOW), "it may be one of the forgotten"
    assert reach.asked_from(("20.0.1.0", 4001), NOW + OPEN_S + 1)
