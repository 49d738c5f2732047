"""Answers as OpenAI's replicas give them, in one piece and as streams of chunks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st

HEAD = {"id": "chatcmpl-7f", "created": 1_700_000_000, "model": "m"}
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 5,
    "total_tokens": 16,
    "prompt_tokens_details": {"cached_tokens": 4},
}


@dataclass(frozen=True)
class Script:
    """An answer: its text in pieces, and calls as (name, arguments in pieces)."""

    text: tuple[str, ...] = ()
    calls: tuple[tuple[str, tuple[str, ...]], ...] = ()
    reason: str = "stop"

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.text) or None}
        if self.calls:
            message["tool_calls"] = [
                call(number, name, "".join(pieces))
                for number, (name, pieces) in enumerate(self.calls)
            ]
        choice = {"index": 0, "message": message, "finish_reason": self.reason}
        return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}

    def chunks(self) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": piece} for piece in self.text]
        for number, (name, pieces) in enumerate(self.calls):
            deltas.append({"tool_calls": [{"index": number, **call(number, name, "")}]})
            deltas += [
                {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}
                for piece in pieces
            ]
        chunks = [chunk(delta) for delta in deltas]
        last = chunk({}, self.reason)
        counted = {**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": USAGE}
        return [*chunks, last, counted]

    def stream(self) -> bytes:
        events = [b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in self.chunks()]
        return b"".join([*events, b"data: [DONE]\n\n"])


def call(number: int, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}


def split(text: str, at: Sequence[int]) -> tuple[str, ...]:
    places = sorted({place % (len(text) + 1) for place in at})
    return tuple(text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True))


PLACES = st.lists(st.integers(0, 50), max_size=5)
ARGUMENTS = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3)


@st.composite
def _scripts(draw: st.DrawFn) -> Script:
    calls = draw(st.lists(st.tuples(st.sampled_from(["look", "add"]), ARGUMENTS), max_size=3))
    return Script(
        split(draw(st.text(max_size=30)), draw(PLACES)),
        tuple((name, split(json.dumps(given), draw(PLACES))) for name, given in calls),
        "tool_calls" if calls else draw(st.sampled_from(["stop", "length"])),
    )


@pytest.fixture(scope="session")
def script() -> type[Script]:
    return Script


@pytest.fixture(scope="session")
def scripts() -> st.SearchStrategy[Script]:
    return _scripts()


@pytest.fixture(scope="session")
def events() -> Callable[[bytes], list[dict[str, Any]]]:
    """Return the data of a stream of named events, whose names are their types."""

    def read(stream: bytes) -> list[dict[str, Any]]:
        told = []
        for event in stream.decode().split("\n\n")[:-1]:
            name, data = event.split("\n")
            told.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {told[-1]['type']}"
        return told

    return read
