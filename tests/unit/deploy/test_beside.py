"""Rings of one deployment beside each other: no common node, and the lower number first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.deploy.beside import Others, refused, room_for
from agent.deploy.messages import RingHere
from agent.errors import CoveyError, ModelError, PeerError
from agent.placement.inputs import Aims, Links, Model, Node

MIB = 1 << 20
MODEL = Model((2 * MIB,) * 6, MIB, row_bytes=64)
LINKS = Links()


def nodes(free: Sequence[int]) -> list[Node]:
    """Return nodes a, b, … with so many MiB free; the model needs 17 on one node."""
    return [
        Node(chr(ord("a") + at), f"node {chr(ord('a') + at)}", size * MIB)
        for at, size in enumerate(free)
    ]


def planned(
    number: int, rings: int, head: str, there: Sequence[Node],
    here: dict[str, list[RingHere]] | None = None, best: dict[int, str] | None = None,
    **more: bool,
) -> tuple[str, ...]:  # fmt: skip
    others = Others(number, rings, best or {})
    for node, found in (here or {}).items():
        others.told(node, found)
    return others.plan(MODEL, there, Aims(head=head), LINKS, **more).nodes


def test_new_rings_leave_each_other_room() -> None:
    # No node holds the model alone, and any two do.
    there = nodes([10, 10, 10, 10])
    here = {"a": [RingHere(1, head=True)], "b": [RingHere(2, head=True)]}
    first = planned(1, 2, "a", there, {"b": here["b"]})
    second = planned(2, 2, "b", there, {"a": here["a"]})
    assert len(first) == len(second) == 2
    assert not {*first} & {*second}
    # Where nobody is head of the second yet, the node that had best be is left to it.
    assert "c" not in planned(1, 2, "a", there, best={2: "c"})


def test_nodes_of_a_planned_ring_are_its_own() -> None:
    there = nodes([10, 10, 10, 10, 40])
    here = {"c": [RingHere(2, nodes=("b",))], "b": [RingHere(2, head=True, nodes=("b", "c"))]}
    assert not {*planned(1, 2, "a", there, here)} & {"b", "c"}
    # A node need not have been asked itself: its head names it.
    assert not {*planned(1, 2, "a", there, {"b": here["b"]})} & {"b", "c"}
    with pytest.raises(PeerError, match="has part in ring 2 of it meanwhile"):
        planned(1, 2, "c", there, here)


def test_where_not_all_can_be_the_higher_number_goes_without_and_gives_its_node() -> None:
    there = nodes([10, 10])
    assert {*planned(1, 2, "a", there, {"b": [RingHere(2, head=True)]})} == {"a", "b"}
    with pytest.raises(CoveyError):
        planned(2, 2, "b", there, {"a": [RingHere(1, head=True)]})
    # Three nodes, of which two are needed for each: the second waits for a fourth.
    there = nodes([10, 10, 10])
    heads = {"a": [RingHere(1, head=True)], "b": [RingHere(2, head=True)]}
    assert len(planned(1, 2, "a", there, {"b": heads["b"]})) == 2
    with pytest.raises((PeerError, ModelError)):
        planned(2, 2, "b", there, {"a": heads["a"]})


def test_a_ring_that_answered_just_now_comes_before_a_new_one_of_a_lower_number() -> None:
    there = nodes([10, 10, 10])
    here = {"a": [RingHere(1, head=True)]}
    assert {*planned(2, 2, "b", there, here, first=True)} == {"b", "c"}


def test_a_ring_that_cannot_be_at_all_keeps_nobody_waiting() -> None:
    # The first one's head has no memory for its part, whatever the others leave.
    there = nodes([0, 10, 10, 10])
    assert len(planned(2, 2, "b", there, {"a": [RingHere(1, head=True)]})) == 2


def test_who_hosts_a_ring_refuses_another_unless_that_waits_and_is_higher() -> None:
    ready, waits = RingHere(2, head=True, nodes=("a",)), RingHere(2, head=True)
    stage = RingHere(2, nodes=("b",))
    assert room_for(2, [ready, waits, stage]) is None
    assert room_for(1, [ready]) is ready
    assert room_for(1, [stage]) is stage
    assert room_for(1, [waits]) is None
    assert room_for(3, [waits]) is waits
    assert refused("m", "den", ready).message == "den has part in ring 2 of m"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=5), st.integers(2, 3), st.data())
def test_rings_that_are_planned_one_after_another_never_share_a_node(
    free: list[int], rings: int, data: st.DataObject
) -> None:
    """Each head plans with what the nodes say by then, in any order; some fail and try again."""
    there = nodes(free)
    count = min(rings, len(there))
    heads = dict(enumerate(data.draw(st.permutations([n.node for n in there]))[:count], 1))
    plans: dict[int, tuple[str, ...]] = {}
    for number in data.draw(st.permutations([*heads, *heads])):
        if number in plans or number not in heads:
            continue
        here: dict[str, list[RingHere]] = {}
        for other, head in heads.items():
            if other != number:
                here.setdefault(head, []).append(
                    RingHere(other, head=True, nodes=plans.get(other, ()))
                )
        try:
            found = planned(number, rings, heads[number], there, here)
        except CoveyError:
            continue
        taken = {node for nodes_ in plans.values() for node in nodes_}
        assert not taken & {*found}
        assert found[0] == heads[number]
        for other, head in list(heads.items()):
            if other != number and head in found:
                assert other > number, "a lower one was turned out"
                del heads[other]
        plans[number] = found
