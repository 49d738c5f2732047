"""The world of `tests/bench/routing.py`: a replica's own law, and one end for each request."""

from __future__ import annotations

import heapq
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

BENCHES = Path(__file__).parents[2] / "bench"
WAYS = ["Covey", "round robin", "least connections", "power of two", "peak EWMA", "Prequal",
        "Prequal, synchronous"]  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Any]:
    """The bench's own modules, which lie beside it and not on the path."""

    class Lab:
        cases: Any
        ours: Any
        peers: Any
        replica: Any
        requests: Any
        world: Any

    sys.path.append(str(BENCHES))
    try:
        for name in ("cases", "ours", "peers", "replica", "requests", "world"):
            setattr(Lab, name, importlib.import_module(f"routinglab.{name}"))
        yield Lab
    finally:
        sys.path.remove(str(BENCHES))


class Clock:
    """What a server calls back by."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def call(self, at: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at, len(self._events) + id(what), what))

    def run(self, until: float = 1e9) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until if until < 1e9 else self.now


def server(lab: Any, clock: Clock, **law: Any) -> Any:
    random = Random(1)
    random.gauss = lambda *_: 0.0  # type: ignore[method-assign] # work without noise
    plain = {"step_s": 0.1, "prefill_s": 1.0, "token_s": 0.01, "each_s": 0.0, "places": 2}
    return lab.replica.Server(lab.replica.Law(**{**plain, **law}), random, clock.call)


def ask(lab: Any, clock: Clock, asked: Any, tokens: int, first_block: int = 0) -> list[float]:
    """Send a request with ten tokens of answer; its times are filled in: first, last."""
    blocks = tuple(range(first_block, first_block + tokens // 64))
    request = lab.requests.Request(clock.now, tokens, 10, blocks, "s", tokens * 4)
    times: list[float] = []

    def note() -> None:
        times.append(clock.now)

    asked.ask(request, clock.now, note, note)
    return times


def test_prompts_are_read_one_after_the_other_and_places_are_waited_for(lab: Any) -> None:
    clock = Clock()
    asked = server(lab, clock)
    times = [ask(lab, clock, asked, 640, 1000 * n) for n in range(3)]
    assert asked.in_flight == 3
    clock.run()
    assert times[0] == pytest.approx([0.74, 0.74 + 0.15], abs=0.001)  # the second is read beside
    assert times[1][0] == pytest.approx(0.74 + 0.74 * 1.0, abs=0.01)
    assert times[2][0] > times[0][1] + 0.74  # it had no place before
    assert asked.in_flight == 0


def test_what_is_cached_is_not_read_again(lab: Any) -> None:
    clock = Clock()
    asked = server(lab, clock)
    ask(lab, clock, asked, 640)
    clock.run()
    begun = clock.now
    times = ask(lab, clock, asked, 704)
    clock.run()
    assert times[0] - begun == pytest.approx(0.1 + 0.064, abs=0.001)


def test_a_server_that_stands_still_goes_on_where_it_was(lab: Any) -> None:
    clock = Clock()
    asked = server(lab, clock)
    times = ask(lab, clock, asked, 640)
    clock.run(0.5)
    asked.set_speed(0.0, 0.5)
    clock.run(9.0)
    assert times == []
    asked.set_speed(1.0, 9.0)
    clock.run()
    assert times[0] == pytest.approx(9.0 + 0.24, abs=0.001)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["refusing", "stalled", "prefixes", "three gateways"])
def test_each_request_has_one_end_and_runs_are_the_same_again(
    lab: Any, way: str, case: str
) -> None:
    [found] = [c for c in lab.cases.CASES if c.name == case]
    troubles = [replace(t, begins=3.0, ends=12.0) for t in found.troubles]
    short = replace(found, seconds=20.0, troubles=troubles)
    make = (lambda c, r, _: lab.ours.Ours(c, r)) if way == "Covey" else lab.peers.PEERS[way]
    one, other = (lab.world.World(short, 3, make).run() for _ in range(2))
    assert one == other  # and the world itself asserts that each had one end
    assert len(one.first_s) > 60
    assert one.good_per_s > 0
    assert one.quantile(0.5) <= one.quantile(0.99) <= lab.world.PATIENCE_S
