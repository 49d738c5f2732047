"""The best ring is the best: against every ring there is, and against the bound where one is."""

import sys
from pathlib import Path

import numpy as np
import pytest

from agent.errors import CoveyError
from agent.placement import search
from agent.placement.objectives import Choice
from agent.placement.problem import problem

# pytest's importlib mode does not put a test's folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

import brute

CASES = 240


def answer(case: brute.Case) -> Choice | None:
    try:
        asked = problem(case.model, case.nodes, case.links, case.aims)
    except CoveyError:
        return None
    chooser = asked.chooser()
    return chooser.best(case.aims.objective, asked.least, asked.most, asked.must)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_best_of_all_rings(seed: int) -> None:
    rng, possible, split = np.random.default_rng([seed, 1]), 0, 0
    for number in range(CASES // 3):
        case = brute.random_case(rng)
        choice = answer(case)
        if choice is None:
            assert brute.rings(case) == [], (seed, number)
            continue
        assert brute.verdict(case, choice.token_s, choice.round_s) == "", (seed, number)
        assert choice.gap == 0
        possible += 1
        split += bool(choice.ring.way)
    assert possible > CASES / 9
    assert split > CASES / 20


def test_remembering_step_by_step_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with seven nodes to twelve, where not all are remembered at once."""
    monkeypatch.setattr(search, "_TINY", 0)
    rng, split = np.random.default_rng(2), 0
    for number in range(30):
        case = brute.random_case(rng)
        choice = answer(case)
        if choice is not None:
            assert brute.verdict(case, choice.token_s, choice.round_s) == "", number
            split += bool(choice.ring.way)
    assert split > 5


@pytest.mark.parametrize("left", [0.0, 3e6, 1e9])
def test_with_many_nodes_the_bound_holds(monkeypatch: pytest.MonkeyPatch, left: float) -> None:
    """Whatever the budget, no ring is better than the bound, and the figures are of a ring."""
    monkeypatch.setattr(search, "_TINY", 0)
    monkeypatch.setattr(search, "FEW", 0)
    monkeypatch.setattr(search, "BUDGET", left)
    rng, bounded = np.random.default_rng(3), 0
    for number in range(30):
        case = brute.random_case(rng)
        choice = answer(case)
        if choice is None:
            continue
        every = brute.rings(case)
        assert any(
            ring.token_s == pytest.approx(choice.token_s)
            and len(ring.nodes) == len(choice.ring.nodes)
            for ring in every
        ), number
        if case.aims.objective == "throughput" and case.aims.streams > 1:
            assert min(r.round_s for r in every) * (1 + choice.gap) >= choice.round_s * (1 - 1e-8)
        elif case.aims.objective == "latency":
            assert min(r.token_s for r in every) * (1 + choice.gap) >= choice.token_s * (1 - 1e-8)
        bounded += 1
    assert bounded > 10
