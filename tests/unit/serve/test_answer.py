"""An answer's pieces: text that stop strings cannot take back, and the tokens that begin in it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.engine.generation import GenerationRequest, Sampling
from agent.engine.serve.answer import Answer, Piece, together
from agent.errors import EngineError

REQUEST = GenerationRequest((1,), 1000, Sampling(), logprobs=0)


def answer(model: Any, stops: Sequence[str] = ()) -> Answer:
    return Answer(lambda: model.generate(REQUEST), stops)


async def collected(of: Answer) -> list[Piece]:
    async with aclosing(of.pieces()) as pieces:
        return [piece async for piece in pieces]


# The fixture is the class of scripted models: nothing of it is kept between examples.
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    cuts=st.lists(st.integers(0, 40), max_size=12),
    text=st.text("abé€😀", max_size=14),
    stops=st.lists(st.text("abé", min_size=1, max_size=3), max_size=3),
)
def test_texts_and_tokens_however_they_are_cut(
    scripted: Any, cuts: list[int], text: str, stops: list[str]
) -> None:
    raw = text.encode()
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    script = [raw[a:b] for a, b in pairwise(edges)]
    found = answer(scripted(script), stops)
    pieces = asyncio.run(collected(found))
    # By the definition: what is before the stop string that is complete first, the longest of them.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    whole = text[: min(ends)[1]] if ends else text
    assert "".join(piece.text for piece in pieces) == whole
    told = [said for piece in pieces for said in piece.tokens]
    assert [said.token.piece for said in told] == script[: len(told)]
    offsets = [len(raw[:edge].decode(errors="ignore")) for edge in edges]
    assert [said.offset for said in told] == offsets[: len(told)]
    if ends:
        assert all(offset >= len(whole) for offset in offsets[len(told) : -1])
    else:
        assert len(told) == len(script)
    # A token is told with the text in which it begins, never after it.
    sent = 0
    for piece in pieces[:-1]:
        sent += len(piece.text)
        assert all(said.offset < sent for said in piece.tokens)


async def test_several_answers_come_as_they_come_and_the_first_begins_alone(scripted: Any) -> None:
    gate = asyncio.Event()
    slow, *others = scripted([gate, b"a", b"b"]), scripted([b"c"]), scripted([])
    answers = [answer(slow), *map(answer, others)]
    found: list[tuple[int, str | None]] = []

    async def follow() -> None:
        async with aclosing(together(answers)) as pieces:
            async for index, piece in pieces:
                if piece is None or piece.text:
                    found.append((index, None if piece is None else piece.text))

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.05)
    assert [len(model.requests) for model in (slow, *others)] == [1, 0, 0]
    gate.set()
    await task
    assert sorted(found, key=lambda item: item[0]) == [
        (0, "a"), (0, "b"), (0, None), (1, "c"), (1, None), (2, None),
    ]  # fmt: skip
    assert [model.running for model in (slow, *others)] == [0, 0, 0]


async def test_one_of_several_that_breaks_ends_all(scripted: Any) -> None:
    models = [scripted([b"a", asyncio.Event()]), scripted([b"b", EngineError("stage 1 is gone")])]
    with pytest.raises(EngineError, match="stage 1"):
        async with aclosing(together([answer(model) for model in models])) as pieces:
            async for _ in pieces:
                pass
    assert [model.running for model in models] == [0, 0]
