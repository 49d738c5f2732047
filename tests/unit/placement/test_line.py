"""A line for llama.cpp's RPC: the first layers on the head, even in bytes."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ModelError, PeerError, UsageError
from agent.placement.inputs import Aims, Model, Node
from agent.placement.plan import plan

HEAD = Node("h", "head", 10**12)


def others(count: int, free: int = 10**12) -> list[Node]:
    return [Node(f"n{i}", f"node{i}", free) for i in range(count)]


@given(
    layers=st.lists(st.integers(1, 100), min_size=2, max_size=9),
    head_bytes=st.integers(0, 300),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_in_a_line_the_head_has_the_first_layers_alone(
    layers: list[int], head_bytes: int, data: st.DataObject
) -> None:
    needs = Model(tuple(layers), head_bytes, in_line=True)
    count = data.draw(st.integers(2, len(layers)))
    found = plan(needs, [HEAD, *others(count - 1)], Aims(nodes=count, head="h"))
    stages = found.stages
    assert [stage.node for stage in stages] == ["h", *(f"n{i}" for i in range(count - 1))]
    assert [stage.first for stage in stages] == [0, *(stage.last for stage in stages[:-1])]
    assert stages[-1].last == len(layers)
    splits = [
        [sum(layers[a:b]) for a, b in pairwise((0, *cuts, len(layers)))]
        for cuts in combinations(range(1, len(layers)), count - 1)
    ]
    best = min(max(first + head_bytes, *rest) for first, *rest in splits)
    held = [sum(layers[stage.first : stage.last]) for stage in stages]
    assert max(held[0] + head_bytes, *held[1:]) == best


def test_it_takes_as_few_nodes_as_hold_the_model_and_those_with_most_memory() -> None:
    needs = Model((100,) * 12, 0, in_line=True, kv_bytes=1)
    assert plan(needs, [Node("h", "head", 3000), *others(3)], Aims(head="h", context=100)).whole
    nodes = [Node("h", "head", 1600), Node("s", "small", 500), Node("l", "large", 2000)]
    found = plan(needs, nodes, Aims(head="h", context=100))
    assert found.nodes == ("h", "l")
    assert "2 nodes: it needs 2 nodes' memory; in a line, split by bytes" in found.reasons[0]
    assert len(found.reasons) == 3


def test_a_line_has_no_more_nodes_than_it_may() -> None:
    needs = Model((100,) * 12, 0, in_line=True, nodes_max=4)
    assert len(plan(needs, [HEAD, *others(3)], Aims(nodes=4, head="h")).stages) == 4
    with pytest.raises(UsageError, match="at most 4 nodes"):
        plan(needs, [HEAD, *others(9)], Aims(nodes=5, head="h"))
    with pytest.raises(ModelError, match="needs about"):
        plan(needs, [Node("h", "head", 200), *others(9, 200)], Aims(head="h"))
    with pytest.raises(PeerError, match="2 can be reached"):
        plan(needs, [HEAD, *others(1)], Aims(nodes=3, head="h"))
