"""One node of a ring at a time: who shares a ring, and who goes first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.appliance.rings import Mate, Standing, Turn, mates, why_wait


def ring(name: str, head: str, *stages: str) -> dict[str, Any]:
    return {"name": name, "head": head, "stages": [{"node": node} for node in stages]}


def test_mates_are_the_nodes_of_the_rings_with_a_part_here() -> None:
    rings = [
        ring("duo", "a", "a", "b"), ring("duo", "d", "d"), ring("trio", "c", "c", "a", "b"),
        ring("solo", "a", "a"), ring("none", ""), ring("theirs", "b", "b", "d"),
    ]  # fmt: skip
    assert mates("a", rings) == {"b": ("duo", "trio"), "c": ("trio",)}
    assert mates("d", rings) == {"b": ("theirs",)}
    assert mates("e", rings) == {}


def why(own: str, node: str, standing: Standing) -> str:
    return why_wait(own, [Mate(node, "box", ("duo", "trio"), standing)])


def test_one_that_is_away_or_on_trial_is_waited_for_by_all() -> None:
    for own, node in (("a", "b"), ("b", "a")):
        assert why(own, node, "away") == "box, which has a part of duo and trio too, is away"
        assert why(own, node, "trial").endswith("has a version on trial")
        assert why(own, node, "good") == ""


def test_of_two_that_would_restart_one_goes_first() -> None:
    for standing in ("writing", "written"):
        assert why("b", "a", standing) and not why("a", "b", standing)


def test_one_that_is_leaving_is_waited_for_by_all() -> None:
    for own, node in (("a", "b"), ("b", "a")):
        assert why(own, node, "leaving").endswith("is about to restart")


def look(turn: Turn, node: str, standing: Standing) -> str | None:
    return turn.look("b", [Mate(node, "box", ("duo",), standing)])


def test_it_says_that_it_is_leaving_before_the_look_that_lets_it_go() -> None:
    turn = Turn()
    assert look(turn, "a", "good") == "" and turn.leaving
    assert look(turn, "a", "good") is None and turn.leaving
    assert Turn().look("b", []) is None


def test_of_two_that_are_leaving_the_one_with_the_higher_id_takes_it_back() -> None:
    turn = Turn(leaving=True)
    assert look(turn, "c", "leaving") and turn.leaving
    assert look(turn, "c", "good") is None
    assert look(turn, "a", "leaving") and not turn.leaving
    # It is asked anew once that one is here again.
    assert look(turn, "a", "away") and look(turn, "a", "trial") and not turn.leaving
    assert look(turn, "a", "good") == "" and turn.leaving


class Node:
    """One node that restarts once; each step of it takes effect at one moment."""

    def __init__(self, name: str, shown: Standing) -> None:
        self.name = name
        self.shown: Standing = shown
        self.may = self.done = False

    def steps(self, nodes: list[Node]) -> Iterator[None]:
        turn, before = Turn(), self.shown
        while True:
            found = []
            for mate in nodes:
                if mate is not self:
                    yield
                    found.append(Mate(mate.name, mate.name, ("ring",), mate.shown))
            yield
            if turn.look(self.name, found) is None:
                break
            yield
            self.shown = "leaving" if turn.leaving else before
        self.may = True
        for standing in ("away", "away", "trial", "trial"):
            yield
            self.shown = standing
        yield
        self.shown, self.may, self.done = "good", False, True


@given(
    st.lists(st.sampled_from(["good", "written"]), min_size=2, max_size=4),
    st.lists(st.integers(0, 3), max_size=200),
)
def test_in_any_order_of_steps_one_node_at_a_time_restarts_and_in_the_end_all(
    shown: list[Standing], order: list[int]
) -> None:
    nodes = [Node("abcd"[at], standing) for at, standing in enumerate(shown)]
    steps = [node.steps(nodes) for node in nodes]

    def step(at: int) -> None:
        next(steps[at], None)
        assert sum(node.may for node in nodes) <= 1, [node.shown for node in nodes]

    for at in order:
        step(at % len(nodes))
    # Whatever came before: a while of fair turns is enough.
    for _ in range(200):
        for at in range(len(nodes)):
            step(at)
    assert all(node.done for node in nodes)


def test_one_reason_is_enough_and_without_others_there_is_none() -> None:
    assert why_wait("a", []) == ""
    others = [Mate("b", "box", ("duo",), "good"), Mate("c", "den", ("duo",), "away")]
    assert why_wait("a", others) == "den, which has a part of duo too, is away"
