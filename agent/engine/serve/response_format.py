"""What an answer has to look like: OpenAI's `response_format`, as a grammar. A core."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.engine.serve.json_grammar import JsonGrammar
from agent.engine.serve.openai import ApiError
from agent.errors import UsageError


class _Named(msgspec.Struct, frozen=True):
    name: str | None = None
    schema: Any = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """`text`, `json_object` (llama-server's with a `schema`), or `json_schema`."""

    type: str
    json_schema: _Named | None = None
    schema: Any = None


def format_grammar(wanted: ResponseFormat) -> str:
    """Return the grammar of a format, empty for text; raises ApiError."""
    where = "response_format"
    match wanted.type:
        case "text":
            return ""
        case "json_object":
            schema = {"type": "object"} if wanted.schema in (None, {}) else wanted.schema
            return schema_grammar(schema, f"{where}.schema")
        case "json_schema":
            named = wanted.json_schema
            if named is None or named.schema is None:
                raise ApiError(f"`{where}.json_schema` has no `schema`", param=where)
            return schema_grammar(named.schema, f"{where}.json_schema.schema")
    raise ApiError(
        f"`{where}.type` is {wanted.type!r}; it must be text, json_object or json_schema",
        param=where,
    )


def schema_grammar(schema: Any, param: str) -> str:
    """Return the grammar of the JSON texts that fit a schema; raises ApiError for `param`."""
    try:
        grammar = JsonGrammar()
        return grammar.text(grammar.schema(schema))
    except UsageError as error:
        raise ApiError(
            f"`{param}` cannot be kept: {error.message}", hint=error.hint, param=param.split(".")[0]
        ) from error
