"""What a JSON schema says: its types, bounds and references, and several schemas as one.

A core, for `json_grammar.py`. Everything raises UsageError for a schema that makes no sense.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from agent.errors import UsageError

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_UNSUPPORTED = frozenset({
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
    "patternProperties", "propertyNames", "minProperties", "maxProperties",
    "unevaluatedProperties", "unevaluatedItems", "contains", "minContains", "maxContains",
    "uniqueItems", "additionalItems", "multipleOf", "pattern", "$dynamicRef", "$recursiveRef",
})  # fmt: skip
_SKIPPED = frozenset({
    "$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title", "description",
    "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator",
})  # fmt: skip
_NOTHING: tuple[Any, ...] = (None, False, {}, [])


def check_supported(schema: Mapping[str, Any]) -> None:
    """Refuse what no grammar of bounded size can say."""
    for name in _UNSUPPORTED & schema.keys():
        if schema[name] not in _NOTHING:
            raise UsageError(f"the schema's `{name}` is not supported.", hint="Leave it out.")


def target(root: Any, reference: Any) -> Any:
    """Return what a reference stands for within the schema `root`."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise UsageError(
            f"the schema refers to {shown(reference)}, which is not within it.",
            hint='References begin with "#/".',
        )
    found = root
    for part in reference[1:].split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name[:9]) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            raise UsageError(f"the schema refers to {shown(reference)}, which it has not.")
    return found


def bounds(schema: Mapping[str, Any], low: str, high: str) -> tuple[int, int | None]:
    """Return two bounds of a number of things, the upper one None where there is none."""
    least, most = schema.get(low) or 0, schema.get(high)
    for name, value in ((low, least), (high, most)):
        if value is not None and (type(value) is not int or value < 0):
            raise UsageError(f"the schema's `{name}` must be a number of things.")
    if most is not None and least > most:
        raise UsageError(f"nothing has the schema's `{low}` {least} and `{high}` {most}.")
    return least, most


def kind_of(schema: Mapping[str, Any]) -> str | None:
    """Return the type that a schema means without saying so."""
    for kind, names in (
        ("object", ("properties", "required", "additionalProperties")),
        ("array", ("items", "prefixItems", "minItems", "maxItems")),
        ("string", ("minLength", "maxLength")),
    ):
        if any(name in schema for name in names):
            return kind
    return None


def is_integer(value: Any) -> bool:
    """Say whether a JSON number is an integer, however it is written."""
    return type(value) is int or (isinstance(value, float) and value.is_integer())


def schemas(schema: Mapping[str, Any], name: str) -> list[Any]:
    """Return the list of schemas under a name."""
    found = schema[name]
    if not isinstance(found, list) or not found:
        raise UsageError(f"the schema's `{name}` must be a list that is not empty.")
    return found


def without(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the rest of a schema, without annotations."""
    return {key: value for key, value in schema.items() if key != name and key not in _SKIPPED}


def merged(schemas: Iterable[Any]) -> dict[str, Any]:
    """Return one schema for what fits several."""
    found: dict[str, Any] = {}
    for schema in schemas:
        if schema is True:
            continue
        if not isinstance(schema, dict):
            raise UsageError(f"{shown(schema)} is no JSON schema that something fits.")
        for name, value in schema.items():
            if name in _SKIPPED:
                continue
            if name == "properties" and _are(dict, found.get(name), value):
                both = found[name].keys() & value.keys()
                if any(found[name][key] != value[key] for key in both):
                    raise UsageError("the schema has a property that must fit two others.")
                found[name] = {**found[name], **value}
            elif name == "required" and _are(list, found.get(name), value):
                found[name] = [*found[name], *value]
            elif name in found and found[name] != value:
                raise UsageError(f"the schema's `{name}` is given twice, which is not supported.")
            else:
                found[name] = value
    return found


def _are(kind: type, *values: Any) -> bool:
    return all(isinstance(value, kind) for value in values)


def shown(value: Any) -> str:
    """Return the beginning of a value's text, for messages."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:40] + "…"
