"""Others' requests at a replica: what is told less what is our own, for a while."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.headers import load
from gateway.routing import Need, Picked, Replica, Router
from gateway.routing.others import FADE_S, MOST, Others

ASK = Need("m", streamed=True, kind="completions", prompt_bytes=4000)


@given(
    told=st.lists(
        st.tuples(st.integers(-3, 2 * MOST), st.integers(0, 300), st.floats(0, 5)), max_size=20
    ),
    later=st.floats(0, 1e6),
)
def test_there_are_never_less_than_none_nor_more_than_was_told(
    told: list[tuple[int, int, float]], later: float
) -> None:
    others, now, last = Others(), 0.0, 0.0
    for there, own, step in told:
        now += step
        others.told(there, own, now)
        if 0 <= there <= MOST:
            last = max(there - own, 0)
            assert others.at(now) == last
    assert 0 <= others.at(now + later) <= last
    assert others.at(now + later + 1) <= others.at(now + later)
    assert others.at(now - 1) <= last


def test_they_fade_within_seconds() -> None:
    others = Others()
    assert others.at(0.0) == 0
    others.told(12, 2, 0.0)
    assert others.at(FADE_S) == pytest.approx(10 / 2.718, rel=0.01)
    assert others.at(10 * FADE_S) < 0.01


@pytest.mark.parametrize(
    ("text", "there"),
    [("0", 0), ("17", 17), ("", None), ("-1", None), ("1.5", None), ("١", None), ("9" * 99, None)],
)
def test_what_a_header_says(text: str, there: int | None) -> None:
    assert load({"x-covey-load": text}) == there
    assert load({}) is None


def router() -> tuple[Router, float]:
    """Return a router at whose replicas a request takes as much longer as others are there."""
    made, now = Router("latency_aware", Random(2)), 0.0
    made.update("mesh", [Replica(n, f"http://{n}", "mesh", ("m",)) for n in "ab"], now)
    for number in range(60):
        others = number % 5
        for name, other in (("a", "b"), ("b", "a")):
            one = made.pick(ASK, now, frozenset({f"http://{other}"}))
            assert isinstance(one, Picked)
            made.told(f"http://{name}", others, now)
            one = made.pick(ASK, now, frozenset({f"http://{other}"}))
            assert isinstance(one, Picked)
            seconds = 0.2 + 0.2 * others
            made.begin(one.replica.url, one.attempt, now)
            made.first_byte(
                one.replica.url, seconds, streamed=True, now=now + seconds, attempt=one.attempt
            )
            made.end(one.replica.url, one.attempt, now + seconds)
            now += 2.0
    return made, now + 60.0


def test_where_others_are_is_no_good_place_until_they_have_gone() -> None:
    made, now = router()

    def chosen(now: float) -> Counter[str]:
        found = [made.pick(ASK, now) for _ in range(40)]
        return Counter(one.replica.name for one in found if isinstance(one, Picked))

    best = max(chosen(now))
    made.told(f"http://{best}", 4, now)
    assert best not in chosen(now)
    assert {entry["name"]: entry["others_in_flight"] for entry in made.view(now)}[best] == 4
    assert best in chosen(now + 10 * FADE_S)


def test_ones_own_are_not_others() -> None:
    made, now = router()
    attempts = []
    for _ in range(3):
        one = made.pick(ASK, now, frozenset({"http://b"}))
        assert isinstance(one, Picked)
        made.begin("http://a", one.attempt, now)
        attempts.append(one.attempt)
    made.told("http://a", 3, now)
    assert made.view(now)[0]["others_in_flight"] == 0
    made.told("http://a", 8, now)
    assert made.view(now)[0]["others_in_flight"] == 5
    made.told("http://nobody", 8, now)
