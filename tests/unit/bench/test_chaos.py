"""What counts as a right answer in `tests/bench/chaos.py`, and to which event a loss is counted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHES = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def lab() -> Iterator[Any]:
    """The bench's own modules, which lie beside it and not on the path."""

    class Lab:
        answers: Any
        events: Any
        tally: Any

    sys.path.append(str(BENCHES))
    try:
        for name in ("answers", "events", "tally"):
            setattr(Lab, name, importlib.import_module(f"chaoslab.{name}"))
        yield Lab
    finally:
        sys.path.remove(str(BENCHES))


WHOLE = {"status": 200, "text": "one two", "finish": "length", "done": True}


@pytest.mark.parametrize(
    ("changed", "end"),
    [
        ({}, "ok"),
        ({"text": "one two three"}, "wrong"),
        ({"text": "one"}, "wrong"),
        ({"finish": "stop"}, "wrong"),
        ({"done": False}, "wrong"),
        ({"finish": "", "done": False}, "cut"),
        ({"finish": ""}, "wrong"),
        ({"text": "one", "finish": "", "error": "broken", "is_object": True}, "lost"),
        ({"text": "on the", "error": "broken", "is_object": True}, "wrong"),
        ({"text": "one", "error": "TransferEncodingError"}, "cut"),
        ({"text": "", "status": 503, "error": "later", "is_object": True}, "refused"),
        ({"text": "", "status": 503, "error": "<html>"}, "cut"),
        ({"text": "", "status": 404, "error": "no model", "is_object": True}, "denied"),
        ({"text": "", "status": 0, "error": "refused"}, "cut"),
        ({"timed_out": True}, "hung"),
    ],
)  # fmt: skip
def test_what_an_answer_counts_as(lab: Any, changed: dict[str, Any], end: str) -> None:
    seen = lab.answers.Seen(True, 0.0, **WHOLE | changed)
    assert seen.judge(lab.answers.Work("count", 2, "one two")) == end
    assert lab.answers.Seen.parse(seen.line()) == seen


def test_the_longest_gap_is_between_two_pieces(lab: Any) -> None:
    seen = lab.answers.Seen(True, 0.0)
    for now in (5.0, 5.5, 7.0, 7.1):
        seen.take("x", now)
    assert (seen.first, seen.gap_s, seen.gap_at, seen.text) == (5.0, 1.5, 5.5, "xxxx")


def test_answers_are_asked_for_up_to_the_first_near_tie(lab: Any) -> None:
    sure, tie = {"a": -0.1, "b": -3.0}, {"a": -0.7, "b": -0.7001}
    # A forbidden token is likelier than the one that was said, and does not matter.
    forbidden = {"end": -0.01, "a": -4.0, "b": -6.0}
    tokens = lab.answers.sure_tokens
    assert tokens([-0.1, -4.0, -0.7, -0.1], [sure, forbidden, tie, sure]) == 2
    assert tokens([-0.1, -0.1], [sure, sure]) == 2
    assert tokens([-0.1], [{"a": -0.1}]) == 0


def event(lab: Any, kind: str, roles: set[str], began: float, whole: float) -> Any:
    return lab.events.Event(kind, "n1", roles, began, 0.0, over=began, whole=whole, answered=whole)


def counts(lab: Any, seen: Any, *events: Any) -> dict[str, float]:
    return {row["name"]: row["value"] for row in lab.tally.rows([seen], events, 1000.0)}


def test_a_loss_is_counted_to_the_event_that_may_lose(lab: Any) -> None:
    stage = event(lab, "stage's engine killed", {"stage"}, 100.0, 104.0)
    head = event(lab, "head's engine killed", {"head", "owner"}, 101.0, 106.0)
    other = event(lab, "another cut off", {"other"}, 100.0, 106.0)
    lost = lab.answers.Seen(True, 99.0, 101.5, end="lost", error="broken", is_object=True)
    by_design = counts(lab, lost, stage, head, other)
    assert by_design["lost by what should lose none"] == 0
    assert by_design["head's engine killed: lost"] == 1
    assert by_design["stage's engine killed: lost"] == 0
    assert counts(lab, lost, stage)["lost by what should lose none"] == 1
    assert counts(lab, lost, other)["refused or lost without an event"] == 1
    late = lab.answers.Seen(True, 200.0, 201.0, end="refused", error="later", is_object=True)
    assert counts(lab, late, stage, head)["refused or lost without an event"] == 1


def test_a_drained_head_may_lose_nothing(lab: Any) -> None:
    drained = event(lab, "head drained", {"head"}, 100.0, 104.0)
    lost = lab.answers.Seen(True, 99.0, 101.5, end="lost", error="broken", is_object=True)
    assert counts(lab, lost, drained)["lost by what should lose none"] == 1
