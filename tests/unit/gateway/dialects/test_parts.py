"""OpenAI's answers as rows of parts: whole and streamed answers give the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.parts import Begun, Ended, Grown, Overlap, Part, Parts


def streamed(chunks: list[dict[str, Any]]) -> tuple[Parts, list[Any]]:
    parts = Parts()
    steps = [step for chunk in chunks for step in parts.push(chunk)]
    return parts, [*steps, *parts.end()]


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}]}


def called(index: int, **function: str) -> dict[str, Any]:
    return delta(tool_calls=[{"index": index, "function": function}])


def told(parts: Parts) -> Any:
    said = [(part.index, part.call_id, part.name, part.text) for part in parts.parts]
    return said, parts.id, parts.model, parts.usage, parts.finish_reason, parts.called


@given(data=st.data())
def test_a_stream_adds_up_to_the_whole_answer(data: st.DataObject, scripts: Any) -> None:
    script = data.draw(scripts)
    whole = Parts()
    whole.take(script.whole())
    parts, _ = streamed(script.chunks())
    assert told(parts) == told(whole)


@given(data=st.data())
def test_parts_come_one_after_the_other(data: st.DataObject, scripts: Any) -> None:
    parts, steps = streamed(data.draw(scripts).chunks())
    open_: Part | None = None
    seen: list[tuple[int, str]] = []
    for step in steps:
        match step:
            case Begun(part):
                assert open_ is None
                open_ = part
                seen.append((part.index, ""))
            case Grown(part, text):
                assert part is open_
                assert text
                seen[-1] = (part.index, seen[-1][1] + text)
            case Ended(part):
                assert part is open_
                open_ = None
    assert open_ is None
    assert seen == [(part.index, part.text) for part in parts.parts]


def test_text_after_a_call_is_a_part_of_its_own() -> None:
    parts, _ = streamed(
        [delta(content="a"), called(0, name="f", arguments="{}"), delta(content="b")]
    )
    assert [part.text for part in parts.parts] == ["a", "{}", "b"]
    assert parts.called


def test_a_call_without_an_id_gets_one_of_its_own() -> None:
    chunks = [{"id": "x", **called(n, name="f", arguments="{}")} for n in (0, 1)]
    parts, _ = streamed(chunks)
    assert [part.call_id for part in parts.parts] == ["call_x_0", "call_x_1"]


def test_what_no_replica_should_say() -> None:
    with pytest.raises(Overlap):
        streamed([called(0, name="f"), called(1, name="g"), called(0, arguments="{}")])
    with pytest.raises(msgspec.ValidationError, match="names no function"):
        streamed([called(0, arguments="{}")])
    with pytest.raises(msgspec.ValidationError):
        streamed([{"choices": "none"}])
    with pytest.raises(msgspec.ValidationError):
        Parts().take({"object": "list"})


def test_other_choices_are_left_out_and_no_more_is_cached_than_asked() -> None:
    parts = Parts()
    parts.take(
        {
            "choices": [{"index": 1, "message": {"content": "other"}}],
            "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}},
        }
    )
    assert (parts.parts, parts.usage.cached) == ([], 3)
