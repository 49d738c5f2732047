"""Ollama's two endpoints for embeddings."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.engine.serve import vectors
from gateway.dialects.ollama_embed import Embed, Embeddings
from gateway.dialects.port import Refused, Translated

KNOWN = ("minilm", "other:latest")
embed = Embed(lambda: KNOWN)
embeddings = Embeddings(lambda: KNOWN)


def ask(dialect: Any, **fields: Any) -> Translated:
    found: Translated = dialect.ask(json.dumps({"model": "minilm", **fields}).encode(), 0.0)
    return found


def answer(asked: Translated) -> Any:
    """Return what becomes of a head's answer: a vector is (number, length) of its text."""
    parsed = vectors.parse_embedding(msgspec.json.encode(asked.body), width=2)
    made = np.array([[number, len(text)] for number, text in enumerate(parsed.inputs)], np.float32)
    told = vectors.embeddings("minilm", made, 7, as_base64=parsed.as_base64)
    told["data"].reverse()  # they are numbered
    return json.loads(asked.reader.whole(told))


def test_texts_have_vectors_in_their_order() -> None:
    asked = ask(embed, input=["a", "bc", "def"], options={"num_ctx": 9}, keep_alive=0)
    assert (asked.path, asked.streamed) == ("/v1/embeddings", False)
    assert answer(asked) == {
        "model": "minilm", "embeddings": [[0, 1], [1, 2], [2, 3]], "prompt_eval_count": 7,
    }  # fmt: skip
    assert answer(ask(embed, input="abc", dimensions=2))["embeddings"] == [[0, 3]]
    assert ask(embed, input="abc", dimensions=3).body["dimensions"] == 3


@pytest.mark.parametrize("fields", [{}, {"input": ""}, {"input": []}, {"input": None}])
def test_nothing_to_embed_means_is_the_model_there(fields: Any) -> None:
    assert answer(ask(embed, **fields)) == {"model": "minilm", "embeddings": []}


def test_the_older_endpoint() -> None:
    assert answer(ask(embeddings, prompt="abc")) == {"embedding": [0, 3]}
    assert answer(ask(embeddings, prompt="")) == {"embedding": []}
    assert answer(ask(embeddings)) == {"embedding": []}


@pytest.mark.parametrize("dialect", [embed, embeddings])
def test_names_errors_and_refusals(dialect: Any) -> None:
    assert ask(dialect, model="minilm:latest").body["model"] == "minilm"
    assert ask(dialect, model="other").body["model"] == "other:latest"
    assert json.loads(dialect.error(404, "no such model", "model_not_found")) == {
        "error": "no such model"
    }
    for fields in ({"model": ""}, {"input": 5, "prompt": 5}, {"input": [1], "prompt": [1]}):
        with pytest.raises(Refused) as caught:
            ask(dialect, **fields)
        assert caught.value.status == 400


@pytest.mark.parametrize("dialect", [embed, embeddings])
def test_missing_vectors_are_an_error(dialect: Any) -> None:
    asked = ask(dialect, input=["a", "b"], prompt="a")
    with pytest.raises(ValueError, match="0 embeddings for"):
        asked.reader.whole({"data": []})
    with pytest.raises(msgspec.ValidationError):
        asked.reader.whole({"data": [{"embedding": "base64"}]})
