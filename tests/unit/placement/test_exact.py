"""The best ring is the best: against every ring there is, and against the bound where one is."""

import sys
from pathlib import Path

import numpy as np
import pytest

from agent.errors import CoveyError
from agent.placement import search
from agent.placement.inputs import Aims, Link, Links, Model, Node, Objective
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
    for number in range(40):
        case = brute.random_case(rng)
        choice = answer(case)
        if choice is not None:
            assert brute.verdict(case, choice.token_s, choice.round_s) == "", number
            split += bool(choice.ring.way)
    assert split > 5


def tight_case(rng: np.random.Generator) -> brute.Case:
    """Eight nodes, most of which are needed: the fast ones would like to come twice."""
    layer = 100_000_000
    nodes = [
        Node(
            f"n{number}", f"node{number}", int(1.3 * layer * rng.uniform(1.5, 4.5)),
            decode_bytes_s=brute.log_uniform(rng, 1e9, 5e11),
        )
        for number in range(8)
    ]  # fmt: skip
    links = {
        (one.node, other.node): Link(brute.log_uniform(rng, 2e-4, 0.08), bytes_s=1e8)
        for one in nodes for other in nodes if one is not other
    }  # fmt: skip
    model = Model((layer,) * 16, layer // 8, output_bytes=layer // 8, row_bytes=16384)
    objective: Objective = "latency" if rng.random() < 0.8 else "throughput"
    head = "" if rng.random() < 0.3 else max(nodes, key=lambda node: node.free_bytes).node
    return brute.Case(model, nodes, Links(links), Aims(objective, streams=4, head=head))


def test_with_many_nodes_the_bound_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the budget, no ring is better than the bound, and none worse than the best."""
    rng, gaps = np.random.default_rng(3), []
    for number in range(14):
        case = tight_case(rng)
        monkeypatch.setattr(search, "FEW", 12)
        best = answer(case)
        assert best is not None
        monkeypatch.setattr(search, "FEW", 0)
        monkeypatch.setattr(search, "BUDGET", (0.0, 1e8, 1e8)[number % 3])
        choice = answer(case)
        assert choice is not None
        one, other = (
            (choice.token_s, best.token_s)
            if case.aims.objective == "latency"
            else (choice.round_s, best.round_s)
        )
        assert one >= other * (1 - 1e-8), number
        assert one <= other * (1 + choice.gap) * (1 + 1e-8), number
        gaps.append(choice.gap)
    assert min(gaps) == 0
    assert max(gaps) > 0
