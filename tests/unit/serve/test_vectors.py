"""What a request for embeddings or ranks may be, and the forms of the answers."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from agent.engine.serve import vectors
from agent.engine.serve.openai import ApiError
from agent.engine.serve.vectors import MAX_TEXTS, RankAsk, parse_embedding, parse_rank


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
        (["a"] * MAX_TEXTS, ("a",) * MAX_TEXTS),
    ],
)
def test_openais_forms_of_input(given: Any, inputs: Any) -> None:
    ask = parse_embedding(body(input=given), 8)
    assert (ask.model, ask.inputs, ask.as_base64) == ("m", inputs, False)


def test_encodings_and_the_models_own_width() -> None:
    assert parse_embedding(body(input="a", encoding_format="base64"), 8).as_base64
    assert not parse_embedding(body(input="a", encoding_format="float", dimensions=8), 8).as_base64
    assert parse_embedding(body(input="a", user="x", truncate=False), 8).inputs == ("a",)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "input", "missing required field `input`"),
        ({"input": "a", "model": ""}, "model", "names no model"),
        ({"input": []}, "input", "`input` has 0 texts; 1 to 2048"),
        ({"input": ["a"] * (MAX_TEXTS + 1)}, "input", "`input` has 2049 texts"),
        ({"input": ""}, "input", r"`input\[0\]` is empty"),
        ({"input": ["a", []]}, "input", r"`input\[1\]` is empty"),
        ({"input": [1, "a"]}, "input", "must be a text, a list of texts, or"),
        ({"input": [-1]}, "input", "must be a text, a list of texts, or"),
        ({"input": [True]}, "input", "must be a text, a list of texts, or"),
        ({"input": {"a": 1}}, "input", "not valid"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "not valid"),
        ({"input": "a", "dimensions": 4}, "dimensions", "is 4, but the model's embeddings have 8"),
        ({"input": "a", "dimensions": 0}, "dimensions", "not valid"),
        ({"input": "a", "truncate": True}, "truncate", "not supported"),
    ],
)
def test_embeddings_that_are_refused(fields: Any, param: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as error:
        parse_embedding(body(**fields), 8)
    assert (error.value.param, error.value.http_status) == (param, 400)


def test_ranks_asked_for() -> None:
    ask = parse_rank(body(query="q", documents=["a", {"text": "b"}]))
    assert ask == RankAsk("m", "q", ("a", "b"), 2, False)
    ask = parse_rank(body(query="q", documents=["a", "b"], top_n=1, return_documents=True))
    assert (ask.top, ask.with_documents) == (1, True)
    assert parse_rank(body(query="q", documents=["a"], top_n=9)).top == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": [1]}, "documents"),
        ({"query": ["q"], "documents": ["a"]}, "query"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "q", "documents": ["a"], "max_tokens_per_doc": 3}, "max_tokens_per_doc"),
        ({"query": "q", "documents": ["a"], "model": None}, "model"),
    ],
)
def test_ranks_that_are_refused(fields: Any, param: str) -> None:
    with pytest.raises(ApiError) as error:
        parse_rank(body(**fields))
    assert (error.value.param, error.value.http_status) == (param, 400)


def test_an_answer_with_embeddings() -> None:
    found = np.array([[0.5, -1.0], [2.0, 0.25]], np.float32)
    answer = vectors.embeddings("m", found, 7, as_base64=False)
    assert answer == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]},
            {"object": "embedding", "index": 1, "embedding": [2.0, 0.25]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    packed = vectors.embeddings("m", found, 7, as_base64=True)["data"][1]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == [2.0, 0.25]


def test_an_answer_with_ranks_is_best_first_and_stable() -> None:
    ask = RankAsk("m", "q", ("a", "b", "c", "d"), 3, True)
    results = vectors.ranks(ask, [0.5, 2.0, 0.5, -1.0], 9)["results"]
    assert results == [
        {"index": 1, "relevance_score": 2.0, "document": {"text": "b"}},
        {"index": 0, "relevance_score": 0.5, "document": {"text": "a"}},
        {"index": 2, "relevance_score": 0.5, "document": {"text": "c"}},
    ]
