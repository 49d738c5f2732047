"""Ollama's /api/embed, and /api/embeddings that came before it, for OpenAI's /v1/embeddings.

A core, wired by `app.py`. `options` and `keep_alive` change nothing here. A text that is longer
than the model takes is refused by the replica, with the limit: `truncate` cuts nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects.ollama_answers import WholeReader
from gateway.dialects.ollama_requests import Endpoint, decoder, line, ndjson
from gateway.dialects.port import Translated

_PATH = "/v1/embeddings"
# Nothing to embed means: is the model there? A replica can only be asked with a text.
_ANY_TEXT = "."


class _Ask(msgspec.Struct, frozen=True):
    model: str = ""
    input: str | list[str] | None = None
    dimensions: int | None = None


class _OldAsk(msgspec.Struct, frozen=True):
    model: str = ""
    prompt: str | None = None


_decode = decoder(_Ask)
_decode_old = decoder(_OldAsk)


class Embed(Endpoint):
    """POST /api/embed."""

    def ask(self, body: bytes, now: float) -> Translated:
        """Return the request (port.Dialect)."""
        ask = _decode(body)
        texts = [ask.input] if isinstance(ask.input, str) else ask.input or []
        texts = texts if texts != [""] else []
        fields: dict[str, Any] = {
            "model": self._meant(ask.model),
            "input": texts or [_ANY_TEXT],
        }
        if ask.dimensions:
            fields["dimensions"] = ask.dimensions
        return ndjson(fields, _PATH, EmbedReader(ask.model, now, len(texts)))


class Embeddings(Endpoint):
    """POST /api/embeddings."""

    def ask(self, body: bytes, now: float) -> Translated:
        """Return the request (port.Dialect)."""
        ask = _decode_old(body)
        fields = {"model": self._meant(ask.model), "input": [ask.prompt or _ANY_TEXT]}
        return ndjson(fields, _PATH, OldEmbedReader(ask.model, now, int(bool(ask.prompt))))


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0


class _Embedding(msgspec.Struct, frozen=True):
    embedding: list[float]
    index: int = 0


class _Embedded(msgspec.Struct, frozen=True):
    data: list[_Embedding]
    usage: _Usage | None = None


class EmbedReader(WholeReader):
    """The answer of /api/embed: a vector for each of `count` texts."""

    def __init__(self, model: str, now: float, count: int) -> None:
        super().__init__(model, now)
        self._count = count

    def whole(self, answer: dict[str, Any]) -> bytes:
        """Return the object; raises ValueError where vectors are missing."""
        told = msgspec.convert(answer, _Embedded)
        found: dict[str, Any] = {
            "model": self._head["model"],
            "embeddings": _vectors(told, self._count),
        }
        if told.usage and self._count:
            found["prompt_eval_count"] = told.usage.prompt_tokens
        return line(found)


class OldEmbedReader(WholeReader):
    """The answer of /api/embeddings: the vector of a text, if there is one."""

    def __init__(self, model: str, now: float, count: int) -> None:
        super().__init__(model, now)
        self._count = count

    def whole(self, answer: dict[str, Any]) -> bytes:
        """Return the object; raises ValueError where the vector is missing."""
        found = _vectors(msgspec.convert(answer, _Embedded), self._count)
        return line({"embedding": found[0] if found else []})


def _vectors(told: _Embedded, count: int) -> list[list[float]]:
    """Return the vectors in the order of the texts."""
    if len(told.data) < count:
        raise ValueError(f"{len(told.data)} embeddings for {count} texts")
    return [one.embedding for one in sorted(told.data, key=lambda one: one.index)[:count]]
