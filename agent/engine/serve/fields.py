"""From a request's bytes to its fields, and to a checked type; ApiError names what is wrong.

A core, used by `schema.py` (text) and `vectors.py` (embeddings, ranks).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from agent.engine.serve.openai import ApiError
from agent.unreadable import UNREADABLE

_Any = TypeVar("_Any")


def json_fields(body: bytes, not_yet: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Return the fields of a JSON object.

    `not_yet` are those that the server cannot do, with the values (next to null) that ask for
    nothing. Others that nobody knows are accepted, since clients send many.
    """
    try:
        fields = msgspec.json.decode(body)
    except UNREADABLE as error:
        raise ApiError(f"The request's body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ApiError("The request's body is not a JSON object")
    for name, neutral in not_yet.items():
        value = fields.get(name)
        if value is not None and not any(_same(value, allowed) for allowed in neutral):
            raise ApiError(
                f"`{name}` is not supported by this server yet",
                hint="Leave it out.",
                param=name,
                code="unsupported_parameter",
            )
    return fields


def _same(value: Any, allowed: Any) -> bool:
    # In Python 0 == False, but `logprobs: 0` asks for something and `false` does not.
    return bool(value == allowed) and isinstance(value, bool) == isinstance(allowed, bool)


def convert(fields: Mapping[str, Any], kind: type[_Any]) -> _Any:
    """Return the fields as `kind`, a struct."""
    try:
        return msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        named = re.search(r"\$\.(\w+)", str(error)) or re.search(r"field `(\w+)`", str(error))
        raise ApiError(
            f"The request is not valid: {error}", param=named.group(1) if named else None
        ) from error


def named_model(model: str | None) -> str:
    """Return the model that a request names; every request has to."""
    if not model:
        raise ApiError("The request names no model", hint="Set `model`.", param="model")
    return model
