"""A path whose far agent alone is silent is told from one that is dead one way, or both ways."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.paths.path import Path
from agent.paths.tunnel import RECEIVES_S, Tunnel

THERE, ELSEWHERE = ("203.0.113.9", 4000), ("203.0.113.10", 4000)


def silent(since: float) -> Path:
    path = Path(THERE, None)
    path.answered(since - 5.02, ("198.51.100.1", 1), since - 5.0)
    path.asked(since)
    return path


def looked(tunnel: Tunnel, *looks: tuple[float, int], place: tuple[str, int] = THERE) -> Tunnel:
    for at, rx in looks:
        tunnel.seen(rx, place, at)
    return tunnel


def test_wireguard_that_receives_after_the_agent_fell_silent_goes_on_for_a_while() -> None:
    path = silent(100.0)
    tunnel = Tunnel()
    tunnel.agent_heard(99.9)
    looked(tunnel, (99.8, 1000), (100.2, 2000))
    assert not tunnel.goes_on(path, 100.3), "that may have been under way"
    looked(tunnel, (100.8, 3000))
    assert not tunnel.goes_on(path, 100.9), "this as well, since the look before"
    looked(tunnel, (101.3, 4000))
    assert tunnel.goes_on(path, 101.4)
    looked(tunnel, (101.2 + RECEIVES_S, 4000))
    assert tunnel.goes_on(path, 101.2 + RECEIVES_S)
    assert not tunnel.goes_on(path, 101.4 + RECEIVES_S), "the machine is gone too"


def test_an_agent_that_is_heard_lives_and_its_silence_is_the_paths() -> None:
    path = silent(100.0)
    tunnel = looked(Tunnel(), (100.4, 1000), (100.9, 2000), (101.4, 3000))
    assert tunnel.goes_on(path, 101.5)
    tunnel.agent_heard(101.5)
    assert not tunnel.goes_on(path, 101.6)


def test_what_comes_from_elsewhere_says_nothing_of_a_path() -> None:
    tunnel = looked(Tunnel(), (100.9, 1), (101.4, 2), (101.9, 3), place=ELSEWHERE)
    assert not tunnel.goes_on(silent(100.0), 102.0)


@given(st.lists(st.floats(0.0, 50.0), max_size=20))
def test_a_path_that_answers_is_not_silent(times: list[float]) -> None:
    path, tunnel = Path(THERE, None), Tunnel()
    for number, at in enumerate(sorted(times)):
        tunnel.seen(number, THERE, at)
        assert not tunnel.goes_on(path, at)
