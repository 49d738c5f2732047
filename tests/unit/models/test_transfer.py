"""The transfer's core under virtual time: every fault in any order, and it always ends."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.models.pieces import Piece
from agent.models.runs import Run, Source
from agent.models.transfer import ATTEMPTS, MAX_REST_S, Transfer

SIZE = 1000


def pieces(count: int) -> list[Piece]:
    return [Piece(i * SIZE, (i + 1) * SIZE) for i in range(count)]


FAULTS = ("right", "right", "right", "wrong", "breaks", "stalls", "refuses", "rests", "whole")


class World:
    """Servers that do what they are dealt, at their own rates; and a file that is right or not.

    Each step is an event of one request: it begins, brings bytes, ends. Nothing waits really.
    """

    def __init__(self, seed: int, count: int, rates: list[int], tiers: list[int], faults: int):
        self.rng = random.Random(seed)
        self.now = 0.0
        self.sources = [Source(f"s{i}", tier) for i, tier in enumerate(tiers)]
        self.rates = dict(zip(self.sources, rates, strict=True))
        self.faulty = faults
        self.done = {i for i in range(count) if self.rng.random() < 0.2}
        self.transfer = Transfer(pieces(count), self.sources, self.done)
        self.accepted: dict[int, bool] = {}
        self.active: list[tuple[float, Run]] = []
        self.fetched: dict[int, int] = {}
        self.steps = 0

    def run(self) -> None:
        transfer = self.transfer
        while not transfer.complete:
            self.steps += 1
            assert self.steps < 20_000, "it does not end"
            while (run := transfer.next_run(self.now)) is not None:
                self.steps += 1
                assert self.steps < 20_000, "it does not end"
                assert not run.source.left
                assert run.source.rests_until <= self.now
                self.check_tier(run.source)
                self.begin(run)
            if transfer.stuck:
                return
            times = [at for at, _ in self.active]
            wake = transfer.wake_at(self.now)
            if wake is not None:
                assert wake >= self.now
                times.append(max(wake, self.now + 1e-6))
            assert times, "nothing happens any more, and it is not over"
            self.now = max(self.now, min(times))
            for at, run in [one for one in self.active if one[0] <= self.now]:
                self.active.remove((at, run))
                self.happen(run)
            assert transfer.under_way >= 0

    def check_tier(self, source: Source) -> None:
        better = [s for s in self.sources if s.tier < source.tier]
        assert all(s.left for s in better)

    def begin(self, run: Run) -> None:
        if self.rng.random() < 0.05 * self.faulty:
            self.transfer.make_sequential(run)
        self.following(run)

    def following(self, run: Run) -> None:
        index = self.transfer.next_piece(run, self.now)
        if index is None:
            self.transfer.end(run)
            return
        assert index not in self.done
        self.fetched[index] = self.fetched.get(index, 0) + 1
        self.active.append((self.now + SIZE / self.rates[run.source], run))

    def happen(self, run: Run) -> None:
        transfer, source = self.transfer, run.source
        fault = self.rng.choice(FAULTS) if self.rng.random() < self.faulty / 10 else "right"
        if run.over or run.current is None:
            transfer.end(run)
            return
        if fault in ("breaks", "stalls"):
            transfer.received(run, self.rng.randrange(SIZE), self.now)
            transfer.broke(run, fault, self.now)
        elif fault == "rests":
            transfer.broke(run, fault, self.now, self.rng.uniform(0, 1.2 * MAX_REST_S))
        elif fault == "refuses":
            transfer.leave(source, "it answered 404")
            transfer.end(run)
        elif not transfer.received(run, SIZE, self.now):
            transfer.end(run)  # another was faster
        elif fault == "wrong":
            transfer.rejected(run, "its SHA-256", self.now)
        else:
            index = run.current
            transfer.accepted(run)
            self.accepted[index] = True
            self.following(run)
        if source.left:
            assert source.name in transfer.why()


@settings(max_examples=1200)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 40),
    sources=st.lists(st.tuples(st.integers(10, 100_000), st.integers(0, 1)), max_size=5),
    faults=st.integers(0, 10),
)
def test_it_always_ends_whole_or_with_every_source_named(
    seed: int, count: int, sources: list[tuple[int, int]], faults: int
) -> None:
    world = World(seed, count, [rate for rate, _ in sources], [tier for _, tier in sources], faults)
    world.run()
    transfer = world.transfer
    assert transfer.complete or transfer.stuck
    missing = set(range(count)) - world.done - world.accepted.keys()
    assert transfer.complete == (not missing)
    if transfer.complete:
        assert transfer.bytes_done == transfer.total
    else:
        assert all(source.name in transfer.why() for source in world.sources)
    for source in world.sources:
        assert source.wrong <= 3 * ATTEMPTS
        assert source.running >= 0


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 60), rate=st.integers(10, 10_000))
def test_a_lone_good_source_sends_each_piece_once(seed: int, count: int, rate: int) -> None:
    world = World(seed, count, [rate], [0], 0)
    world.run()
    assert world.transfer.complete
    assert set(world.fetched.values()) <= {1}


def test_fast_sources_send_more_and_a_slow_one_does_not_hold_up_the_end() -> None:
    world = World(1, 200, [200_000, 20_000, 500], [0, 0, 0], 0)
    world.run()
    fast, middle, slow = world.sources
    assert fast.bytes > 3 * middle.bytes > 3 * slow.bytes
    alone = sum(p.size for p in world.transfer.pieces) / 200_000
    assert world.now < 2 * alone + 2.0  # a piece of the slow one takes 2 s


def test_who_stalls_is_taken_over() -> None:
    good, dead = Source("good"), Source("dead")
    transfer = Transfer(pieces(2), [good, dead])
    quick, stalled = transfer.next_run(0.0), transfer.next_run(0.0)
    assert quick is not None and stalled is not None
    assert (quick.source, stalled.source) == (good, dead)
    transfer.next_piece(quick, 0.0)
    assert transfer.next_piece(stalled, 0.0) == 1
    assert transfer.received(quick, SIZE, 2.0)
    transfer.accepted(quick)
    transfer.end(quick)
    copy = transfer.next_run(3.0)
    assert copy is not None and copy.source is good
    assert transfer.next_piece(copy, 3.0) == 1
    assert transfer.next_run(3.0) is None  # two are enough
    assert transfer.received(copy, SIZE, 4.0)
    transfer.accepted(copy)
    assert transfer.complete
    assert not transfer.received(stalled, 1, 5.0)


def test_failures_in_a_row_end_a_source_and_a_success_forgives() -> None:
    source = Source("s")
    transfer = Transfer(pieces(10), [source])
    now = 0.0
    for _ in range(5):
        for _ in range(ATTEMPTS - 1):
            run = transfer.next_run(now)
            assert run is not None
            transfer.next_piece(run, now)
            transfer.broke(run, "it is silent", now)
            assert transfer.next_run(now) is None or source.failures == 0
            now = transfer.wake_at(now) or now
        run = transfer.next_run(now)
        assert run is not None
        transfer.next_piece(run, now)
        transfer.accepted(run)
        transfer.end(run)
    for _ in range(ATTEMPTS):
        run = transfer.next_run(now)
        assert run is not None
        transfer.broke(run, "it is silent", now)
        now = transfer.wake_at(now) or now
    assert transfer.stuck
    assert transfer.why() == "s: it failed 3 times, the last time it is silent"


def test_requests_that_broke_together_are_one_failure() -> None:
    source = Source("s")
    transfer = Transfer(pieces(10), [source])
    runs = [transfer.next_run(0.0), transfer.next_run(0.0)]
    for run in runs:
        assert run is not None
        transfer.next_piece(run, 0.0)
        transfer.broke(run, "the server ended", 1.0)
    assert source.failures == 1


@pytest.mark.parametrize("wrong_between_right", [True, False])
def test_the_third_wrong_piece_ends_a_source(wrong_between_right: bool) -> None:
    source = Source("liar")
    transfer = Transfer(pieces(10), [source])
    now = 0.0
    for _ in range(ATTEMPTS):
        if wrong_between_right:
            run = transfer.next_run(now)
            assert run is not None
            transfer.next_piece(run, now)
            transfer.accepted(run)
            transfer.end(run)
        run = transfer.next_run(now)
        assert run is not None
        transfer.next_piece(run, now)
        transfer.rejected(run, "its SHA-256", now)
        now += 10
    assert transfer.stuck
    assert "wrong bytes 3 times" in source.left


def test_a_source_without_ranges_has_one_request_from_what_is_missing() -> None:
    source = Source("plain")
    transfer = Transfer(pieces(6), [source], done=[0, 2])
    run = transfer.next_run(0.0)
    assert run is not None
    assert transfer.next_piece(run, 0.0) == 1
    transfer.make_sequential(run)
    got = []
    while run.current is not None:
        got.append(run.current)
        transfer.accepted(run)
        transfer.next_piece(run, 0.0)
        assert transfer.next_run(0.0) is None
    assert got == [1, 3, 4, 5]
    assert transfer.complete


def test_who_asks_for_too_long_a_rest_is_left() -> None:
    source = Source("s")
    transfer = Transfer(pieces(2), [source])
    run = transfer.next_run(0.0)
    assert run is not None
    transfer.broke(run, "it answered 429", 0.0, 30.0)
    assert transfer.wake_at(0.0) == 30.0
    run = transfer.next_run(30.0)
    assert run is not None
    transfer.broke(run, "it answered 429", 30.0, 3600.0)
    assert transfer.why() == "s: it asks to be left alone for 3600 s: it answered 429"
