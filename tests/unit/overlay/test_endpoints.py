"""Each row of the table in endpoints.py."""

from __future__ import annotations

from agent.overlay.endpoints import FRESH_HANDSHAKE_S, TRY_INTERVAL_S, Choice, advance

LAN, IPV6, IPV4 = ("192.168.1.5", 51820), ("2001:db8::5", 51820), ("203.0.113.5", 51820)
ALL = (LAN, IPV6, IPV4)
T0 = 1_700_000_000.0


def test_nothing_to_try() -> None:
    assert Choice().endpoint is None
    assert advance(Choice(), (), None, T0).endpoint is None


def test_the_candidates_take_turns_every_six_seconds() -> None:
    choice = Choice()
    seen = []
    for second in range(25):
        choice = advance(choice, ALL, None, T0 + second)
        seen.append(choice.endpoint)
    assert TRY_INTERVAL_S == 6
    assert seen == [LAN] * 6 + [IPV6] * 6 + [IPV4] * 6 + [LAN] * 6 + [IPV6]


def test_a_fresh_handshake_stays() -> None:
    choice = advance(Choice(), ALL, None, T0)
    choice = advance(choice, ALL, None, T0 + 6)
    for second in range(7, 180, 5):
        choice = advance(choice, ALL, T0 + 7, T0 + second)
        assert choice.endpoint == IPV6


def test_after_a_stale_handshake_the_one_that_worked_is_tried_first() -> None:
    choice = advance(Choice(), ALL, T0, T0 + FRESH_HANDSHAKE_S - 1)
    choice = advance(choice, ALL, T0, T0 + FRESH_HANDSHAKE_S)
    assert choice.endpoint == LAN
    assert advance(choice, ALL, T0, T0 + FRESH_HANDSHAKE_S + 4).endpoint == LAN
    assert advance(choice, ALL, T0, T0 + FRESH_HANDSHAKE_S + 5).endpoint == IPV6


def test_new_candidates_keep_the_one_in_use_and_its_time() -> None:
    choice = advance(Choice(), (LAN, IPV6), None, T0)
    choice = advance(choice, (LAN, IPV6), None, T0 + 6)
    choice = advance(choice, (IPV4, LAN, IPV6), None, T0 + 8)
    assert choice.endpoint == IPV6
    assert advance(choice, (IPV4, LAN, IPV6), None, T0 + 12).endpoint == IPV4


def test_a_candidate_that_is_gone_gives_way_to_the_first() -> None:
    choice = advance(Choice(), ALL, None, T0)
    choice = advance(choice, (IPV4, IPV6), None, T0 + 1)
    assert choice.endpoint == IPV4
    assert advance(choice, (IPV4, IPV6), None, T0 + 6).endpoint == IPV4
    assert advance(choice, (), None, T0 + 7).endpoint is None


def test_a_candidate_given_twice_is_tried_once() -> None:
    assert advance(Choice(), (LAN, LAN, IPV4), None, T0).candidates == (LAN, IPV4)


def test_a_single_candidate_is_never_left() -> None:
    choice = Choice()
    for second in range(30):
        choice = advance(choice, (LAN,), None, T0 + second)
        assert choice.endpoint == LAN
