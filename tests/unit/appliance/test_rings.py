"""One node of a ring at a time: who shares a ring, and who goes first."""

from __future__ import annotations

from typing import Any

from agent.appliance.rings import Mate, Standing, mates, why_wait


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


def test_one_reason_is_enough_and_without_others_there_is_none() -> None:
    assert why_wait("a", []) == ""
    others = [Mate("b", "box", ("duo",), "good"), Mate("c", "den", ("duo",), "away")]
    assert why_wait("a", others) == "den, which has a part of duo too, is away"
