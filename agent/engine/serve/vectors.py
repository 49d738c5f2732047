"""Requests for embeddings and ranks, checked, and the forms of their answers.

A core, used by `embeddings.py`. Embeddings are OpenAI's; ranks are as Jina, Cohere and llama-server
have them.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from agent.engine.embedding import Vectors
from agent.engine.serve.fields import convert, json_fields, named_model
from agent.engine.serve.openai import ApiError, Json

# OpenAI's limit of a request.
MAX_TEXTS = 2048

# Fields of other servers that would change the answer, with the values that ask for nothing.
_NOT_YET: dict[str, tuple[Any, ...]] = {
    # vLLM, TEI
    "truncate": (False,),
    "truncate_prompt_tokens": (),
    "add_special_tokens": (True,),
    "normalize": (True,),
    # llama-server (2 is the Euclidean length)
    "embd_normalize": (2,),
    # Jina, Cohere
    "task": (),
    "input_type": (),
    "late_chunking": (False,),
    "normalized": (True,),
    "max_chunks_per_doc": (),
    "max_tokens_per_doc": (),
    "rank_fields": ([],),
}

Ids = tuple[Annotated[int, Meta(ge=0, le=2**31 - 1)], ...]


@dataclass(frozen=True)
class EmbeddingAsk:
    """Texts, or token ids in their place; `as_base64` of little-endian 32-bit floats."""

    model: str
    inputs: tuple[str | Ids, ...]
    as_base64: bool


@dataclass(frozen=True)
class RankAsk:
    """A query and the documents to be ranked; the best `top` of them are wanted."""

    model: str
    query: str
    documents: tuple[str, ...]
    top: int
    with_documents: bool


class _EmbeddingRequest(msgspec.Struct, frozen=True):
    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class _Document(msgspec.Struct, frozen=True):
    text: str


class _RankRequest(msgspec.Struct, frozen=True):
    query: str
    documents: Annotated[list[str | _Document], Meta(min_length=1, max_length=MAX_TEXTS)]
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None


def parse_embedding(body: bytes, width: int) -> EmbeddingAsk:
    """Return the checked request of /v1/embeddings for vectors of `width`; raises ApiError."""
    request = convert(json_fields(body, _NOT_YET), _EmbeddingRequest)
    model = named_model(request.model)
    if request.dimensions not in (None, width):
        # A shorter vector is one only for models that were trained so, and no file says it.
        raise ApiError(
            f"`dimensions` is {request.dimensions}, but the model's embeddings have {width}",
            hint="Leave it out. If the model was trained for shorter ones, cut them yourself.",
            param="dimensions",
            code="unsupported_parameter",
        )
    return EmbeddingAsk(model, _inputs(request.input), request.encoding_format == "base64")


def parse_rank(body: bytes) -> RankAsk:
    """Return the checked request of /v1/rerank; raises ApiError."""
    request = convert(json_fields(body, _NOT_YET), _RankRequest)
    documents = tuple(d if isinstance(d, str) else d.text for d in request.documents)
    top = min(request.top_n or len(documents), len(documents))
    return RankAsk(
        named_model(request.model), request.query, documents, top, request.return_documents or False
    )


def _inputs(given: str | list[Any]) -> tuple[str | Ids, ...]:
    """Return the texts of one of OpenAI's four forms: a text, token ids, or a list of either."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not 1 <= len(given) <= MAX_TEXTS:
        raise ApiError(f"`input` has {len(given)} texts; 1 to {MAX_TEXTS} make a request",
                       param="input")  # fmt: skip
    try:
        inputs: tuple[str | Ids, ...] = msgspec.convert(given, tuple[str | Ids, ...])
    except msgspec.ValidationError as error:
        raise ApiError(
            "`input` must be a text, a list of texts, or a list (of lists) of token ids",
            param="input",
        ) from error
    for number, text in enumerate(inputs):
        if not text:
            raise ApiError(f"`input[{number}]` is empty", param="input")
    return inputs


def embeddings(model: str, vectors: Vectors, tokens: int, *, as_base64: bool) -> Json:
    """Return the answer of /v1/embeddings; `tokens` were computed."""
    values: Sequence[Any]
    if as_base64:
        raw = vectors.astype(np.dtype("<f4"), copy=False)
        values = [base64.b64encode(vector.tobytes()).decode() for vector in raw]
    else:
        values = vectors.tolist()
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": value}
            for index, value in enumerate(values)
        ],
        "model": model,
        "usage": _usage(tokens),
    }


def ranks(ask: RankAsk, scores: Sequence[float], tokens: int) -> Json:
    """Return the answer of /v1/rerank: the best first, those of equal score in the order given."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return {
        "object": "list",
        "model": ask.model,
        "results": [
            {"index": index, "relevance_score": scores[index]}
            | ({"document": {"text": ask.documents[index]}} if ask.with_documents else {})
            for index in order[: ask.top]
        ],
        "usage": _usage(tokens),
    }


def _usage(tokens: int) -> Json:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
