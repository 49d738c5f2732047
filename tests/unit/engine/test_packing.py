"""Packing: every text once, within the limits, and nobody waits longer than those before it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.packing import Packing, Texts

ROWS, SEQUENCES = 20, 4
SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=8)
# A list of sizes is a new request, a number has one of the known ones end, None asks for a batch.
STEPS = st.lists(st.one_of(SIZES, st.integers(0, 20), st.none()), max_size=60)


class Line:
    """A packing, and what is expected of it."""

    def __init__(self) -> None:
        self.packing: Packing[Texts] = Packing(rows=ROWS, sequences=SEQUENCES)
        self.wanted: list[Texts] = []
        self.computed: dict[int, list[int]] = {}
        self.patience: dict[int, int] = {}

    def add(self, sizes: list[int]) -> None:
        request = Texts(sizes)
        self.packing.add(request)
        # One batch for each that is in the line before it, and one of its own.
        self.patience[id(request)] = len(self.wanted) + 1
        self.wanted.append(request)
        self.computed[id(request)] = []

    def end(self, number: int) -> None:
        if self.wanted:
            request = self.wanted.pop(number % len(self.wanted))
            self.packing.end(request)

    def batch(self) -> None:
        batch = self.packing.next()
        assert bool(batch) == bool(self.wanted)
        assert len(batch) <= SEQUENCES
        sizes = [request.sizes[number] for request, number in batch]
        assert sum(sizes) <= ROWS or len(sizes) == 1
        for request in self.wanted:
            self.patience[id(request)] -= 1
        for request, number in batch:
            assert request in self.wanted, "it has ended"
            self.computed[id(request)].append(number)
            self.patience[id(request)] = len(self.wanted)
        assert all(self.patience[id(request)] >= 0 for request in self.wanted)
        self.wanted = [r for r in self.wanted if len(self.computed[id(r)]) < len(r.sizes)]
        assert self.packing.waiting == len(self.wanted)


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_every_text_is_computed_once_and_in_time(steps: list[list[int] | int | None]) -> None:
    line = Line()
    added = []
    for step in steps:
        if isinstance(step, list):
            line.add(step)
            added.append(line.wanted[-1])
        elif step is None:
            line.batch()
        else:
            line.end(step)
    served = set(map(id, line.wanted))
    while line.wanted:
        line.batch()
    assert line.packing.next() == []
    for request in added:
        computed = line.computed[id(request)]
        assert computed == list(range(len(computed)))
        if id(request) in served:
            assert len(computed) == len(request.sizes)


def test_short_texts_of_several_requests_share_a_batch() -> None:
    packing: Packing[Texts] = Packing(rows=20, sequences=4)
    long, short = Texts([8, 8, 8]), Texts([3])
    packing.add(long)
    packing.add(short)
    assert packing.next() == [(long, 0), (short, 0), (long, 1)]
    assert packing.next() == [(long, 2)]


def test_a_text_longer_than_a_shared_batch_is_alone() -> None:
    packing: Packing[Texts] = Packing(rows=20, sequences=4)
    long, short = Texts([30]), Texts([1, 1])
    packing.add(short)
    packing.add(long)
    assert packing.next() == [(short, 0), (short, 1)]
    assert packing.next() == [(long, 0)]


@pytest.mark.parametrize("sizes", [[], [0], [3, 0]])
def test_nothing_is_no_text(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Packing(rows=20, sequences=4).add(Texts(sizes))
