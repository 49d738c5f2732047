"""The split: exact against brute force, honest about what it cannot do."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ModelError, PeerError, UsageError
from agent.placement.plan import Candidate, ModelSizes, Stage, plan

HEAD = Candidate("h", "head", 10**12)


def others(count: int, free: int = 10**12) -> list[Candidate]:
    return [Candidate(f"n{i}", f"node{i}", free) for i in range(count)]


def held(stages: tuple[Stage, ...], sizes: ModelSizes) -> dict[str, int]:
    result: dict[str, int] = {stages[0].node: sizes.head_bytes}
    for stage in stages:
        layers = sum(sizes.layer_bytes[stage.first : stage.last])
        result[stage.node] = result.get(stage.node, 0) + layers
    return result


def brute_force(sizes: ModelSizes, nodes: int) -> int | None:
    """The least maximum over every allowed split whose head has half its rounds at each end."""
    layers, period = len(sizes.layer_bytes), sizes.period
    places = [*range(0, layers, period), layers]
    best = None
    for cuts in combinations(places[1:-1], nodes):
        parts = list(pairwise((0, *cuts, layers)))
        rounds = [places.index(b) - places.index(a) for a, b in parts]
        if abs(rounds[0] - rounds[-1]) > 1 or not all(sizes.allows(a, b) for a, b in parts):
            continue
        first, *middle, last = (sum(sizes.layer_bytes[a:b]) for a, b in parts)
        worst = max(sizes.head_bytes + first + last, *middle)
        best = worst if best is None else min(best, worst)
    return best


@given(
    layers=st.lists(st.integers(1, 100), min_size=3, max_size=10),
    head_bytes=st.integers(0, 300),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_the_split_is_exact_and_covers_every_layer_once(
    layers: list[int], head_bytes: int, data: st.DataObject
) -> None:
    sizes = ModelSizes(tuple(layers), head_bytes)
    nodes = data.draw(st.integers(2, len(layers) - 1))
    result = plan(sizes, HEAD, others(nodes - 1), nodes)
    assert result.stages[0].first == 0
    assert result.stages[-1].last == len(layers)
    assert result.stages[0].node == result.stages[-1].node == "h"
    for before, after in pairwise(result.stages):
        assert before.last == after.first
    assert all(stage.first < stage.last for stage in result.stages)
    assert len({stage.node for stage in result.stages}) == nodes
    assert max(held(result.stages, sizes).values()) == brute_force(sizes, nodes)


@given(
    layers=st.lists(st.integers(1, 100), min_size=3, max_size=14),
    head_bytes=st.integers(0, 300),
    period=st.integers(1, 4),
    marked=st.lists(st.booleans(), min_size=14, max_size=14),
    barred=st.integers(1, 5),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_a_split_keeps_to_the_places_and_parts_that_the_model_allows(
    layers: list[int], head_bytes: int, period: int, marked: list[bool], barred: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    def allows(start: int, stop: int) -> bool:
        return any(marked[start:stop]) and stop - start != barred

    sizes = ModelSizes(tuple(layers), head_bytes, period, allows)
    nodes = data.draw(st.integers(2, len(layers)))
    best = brute_force(sizes, nodes)
    if best is None:
        with pytest.raises(UsageError, match="can be cut over at most"):
            plan(sizes, HEAD, others(nodes - 1), nodes)
        return
    stages = plan(sizes, HEAD, others(nodes - 1), nodes).stages
    assert all(stage.first % period == 0 for stage in stages)
    assert all(allows(stage.first, stage.last) for stage in stages)
    assert [before.last for before in stages] == [
        *(after.first for after in stages[1:]),
        len(layers),
    ]
    assert max(held(stages, sizes).values()) == best


def test_heads_that_are_not_allowed_do_not_end_the_search() -> None:
    sizes = ModelSizes((100,) * 12, 0, 1, lambda start, stop: stop - start != 2)
    result = plan(sizes, HEAD, others(1), 2)
    assert [(stage.first, stage.last) for stage in result.stages] == [(0, 3), (3, 9), (9, 12)]


def test_where_a_number_of_nodes_allows_no_split_more_nodes_are_tried() -> None:
    """Four nodes would need a part of four layers, which is barred here; five do not."""
    sizes = ModelSizes((100,) * 12, 0, 2, lambda start, stop: stop - start != 4)
    result = plan(sizes, Candidate("h", "head", 520), others(5, 520), None)
    assert len({stage.node for stage in result.stages}) == 5
    assert all(stage.last - stage.first == 2 for stage in result.stages)
    with pytest.raises(UsageError, match="12 layers in rounds of 2 can be cut over at most 5"):
        plan(sizes, HEAD, others(5), 6)


def test_one_node_that_fits_is_one_node() -> None:
    sizes = ModelSizes((100,) * 12, 50)
    result = plan(sizes, Candidate("h", "head", 2000), others(5, 10**9), None)
    assert result.whole
    assert "it fits on one node" in result.reasons[0]


def test_the_fewest_nodes_on_which_it_fits() -> None:
    sizes = ModelSizes((100,) * 12, 100)
    result = plan(sizes, Candidate("h", "head", 650), others(5, 650), None)
    assert len({stage.node for stage in result.stages}) == 3
    assert all(bytes_ * 1.25 <= 650 for bytes_ in held(result.stages, sizes).values())


def test_nodes_with_more_memory_come_first() -> None:
    sizes = ModelSizes((100,) * 12, 100)
    small, large = Candidate("s", "small", 10), Candidate("l", "large", 10**6)
    result = plan(sizes, HEAD, [small, large], 2)
    assert {stage.node for stage in result.stages} == {"h", "l"}


def test_impossible_wishes_are_refused_with_the_numbers() -> None:
    sizes = ModelSizes((100,) * 4, 50)
    with pytest.raises(PeerError, match="3 nodes was asked for, and 2 can be reached"):
        plan(sizes, HEAD, others(1), 3)
    with pytest.raises(UsageError, match="at most 3 nodes"):
        plan(sizes, HEAD, others(9), 4)
    with pytest.raises(ModelError, match="needs about"):
        plan(ModelSizes((2**30,) * 4, 0), Candidate("h", "head", 2**20), others(1, 2**20), None)


def test_the_reasons_name_every_node() -> None:
    result = plan(ModelSizes((100,) * 6, 50), HEAD, others(2), 3)
    assert len(result.reasons) == 4
    assert "links are not weighed" in result.reasons[0]


def test_a_model_that_cannot_be_cut_runs_on_the_head_or_the_reason_is_told() -> None:
    sizes = ModelSizes((2**20,) * 4, 0, uncut="m.gguf is for embeddings")
    for nodes in (None, 1):
        result = plan(sizes, HEAD, others(3), nodes)
        assert [stage.node for stage in result.stages] == ["h"]
        assert "it runs on one node, since m.gguf is for embeddings" in result.reasons[0]
    with pytest.raises(UsageError, match=r"runs on one node, not on 2: m\.gguf is for embeddings"):
        plan(sizes, HEAD, others(3), 2)
    small = Candidate("h", "attic", 2**20)
    with pytest.raises(ModelError, match="5 MiB of memory, and attic has 1 MiB free; it runs on"):
        plan(sizes, small, others(3), None)


@given(
    layers=st.lists(st.integers(1, 100), min_size=2, max_size=9),
    head_bytes=st.integers(0, 300),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_in_a_line_the_head_has_the_first_layers_alone(
    layers: list[int], head_bytes: int, data: st.DataObject
) -> None:
    sizes = ModelSizes(tuple(layers), head_bytes, in_line=True)
    nodes = data.draw(st.integers(2, len(layers)))
    stages = plan(sizes, HEAD, others(nodes - 1), nodes).stages
    assert [stage.node for stage in stages] == ["h", *(f"n{i}" for i in range(nodes - 1))]
    assert [stage.first for stage in stages] == [0, *(stage.last for stage in stages[:-1])]
    assert stages[-1].last == len(layers)
    splits = [
        [sum(layers[a:b]) for a, b in pairwise((0, *cuts, len(layers)))]
        for cuts in combinations(range(1, len(layers)), nodes - 1)
    ]
    best = min(max(first + head_bytes, *rest) for first, *rest in splits)
    assert max(held(stages, sizes).values()) == best


def test_a_line_has_no_more_nodes_than_it_may() -> None:
    sizes = ModelSizes((100,) * 12, 0, in_line=True, nodes_max=4)
    assert len(plan(sizes, HEAD, others(3), 4).stages) == 4
    with pytest.raises(UsageError, match="at most 4 nodes"):
        plan(sizes, HEAD, others(9), 5)
    with pytest.raises(ModelError, match="needs about"):
        plan(sizes, Candidate("h", "head", 200), others(9, 200), None)
