"""The words of a description: schemas, headers, and an operation with all that it may answer.

A core, used by the modules beside it. Objects may always have more fields than are described: the
gateway passes on what it does not know, both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.routing import STRATEGIES
from gateway.wishes import DEADLINE_MS, MAX_PRIORITY, PRIORITY, SESSION, STRATEGY

Json = dict[str, Any]
JSON, EVENTS, LINES, PLAIN = (
    "application/json", "text/event-stream", "application/x-ndjson", "text/plain"
)  # fmt: skip

TEXT: Json = {"type": "string"}
NAME: Json = {"type": "string", "minLength": 1}
# What every JSON library reads as it was meant.
_MOST = 2**53 - 1
WHOLE: Json = {"type": "integer", "minimum": -_MOST, "maximum": _MOST}
COUNT: Json = {"type": "integer", "minimum": 0, "maximum": _MOST}
TOKEN: Json = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
NUMBER: Json = {"type": "number"}
SHARE: Json = {"type": "number", "minimum": 0, "maximum": 1}
TEMPERATURE: Json = {"type": "number", "minimum": 0, "maximum": 2}
FUNCTION: Json = {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"}
FLAG: Json = {"type": "boolean"}
ANY: Json = {}


def ref(name: str) -> Json:
    """Return the schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def either(*schemas: Json) -> Json:
    """Return the schema of what fits any of these."""
    return {"anyOf": list(schemas)}


def maybe(schema: Json) -> Json:
    """Return the schema of what may be null, which clients write for what they do not set."""
    return either(schema, {"type": "null"})


def always(value: str | bool) -> Json:
    """Return the schema of one value."""
    return {"const": value}


def words(*values: str) -> Json:
    """Return the schema of one of these words."""
    return {"type": "string", "enum": list(values)}


def many(schema: Json, least: int = 0) -> Json:
    """Return the schema of a list."""
    return {"type": "array", "items": schema} | ({"minItems": least} if least else {})


def thing(needed: Mapping[str, Json], more: Mapping[str, Json] | None = None) -> Json:
    """Return the schema of an object with the fields that it needs, and those it may have."""
    found: Json = {
        "type": "object",
        "properties": {**needed, **(more or {})},
        "additionalProperties": True,
    }
    return found | ({"required": list(needed)} if needed else {})


class Error(NamedTuple):
    """The form of an API's errors: the name of its schema."""

    schema: str


class Said(NamedTuple):
    """A whole answer: what it is, its media type and its schema."""

    about: str
    schema: Json
    media: str = JSON


class Stream(NamedTuple):
    """An answer in pieces: its media type, and the schema of one piece's JSON.

    A piece is the data of an event, or a line. OpenAI's streams end with `[DONE]`, which is none.
    """

    media: str
    piece: Json


# Why the gateway refuses, where it does before or instead of a replica.
REFUSALS = {
    "400": "The request makes no sense, or asks for what is not served.",
    "401": "A key is needed, or this one is not valid.",
    "403": "The key is not for this model.",
    "404": "There is no such model, or its server has no such endpoint.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "429": "Too many requests wait, or the key's limits are reached.",
    "500": "The gateway made a mistake, or the replica did.",
    "503": "No replica is ready: the model is loading, or all places are taken.",
    "504": "The request's deadline passed, or the replica was silent for too long.",
}
_READING = ("401", "500", "503")
_RETRIED = frozenset({"429", "503"})
_HEADERS: Json = {
    "Replica": {"description": "Which replica answered.", "required": True, "schema": NAME},
    "Route": {"description": "Why that one, in words.", "required": True, "schema": NAME},
    "RetryAfter": {
        "description": "Seconds after which another try makes sense.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Authenticate": {"description": "`Bearer`.", "schema": TEXT},
    "Limit": {"description": "The key's limit a minute.", "schema": COUNT},
    "Remaining": {"description": "What is left of it.", "schema": COUNT},
    "Reset": {"description": "When it is whole again, such as 6m0s.", "schema": TEXT},
}
_LIMITS = {
    f"x-ratelimit-{name}-{what}": {"$ref": f"#/components/headers/{name.capitalize()}"}
    for name in ("limit", "remaining", "reset")
    for what in ("requests", "tokens")
}
_ROUTED = {
    "x-covey-replica": {"$ref": "#/components/headers/Replica"},
    "x-covey-route": {"$ref": "#/components/headers/Route"},
}
_WISHES: Json = {
    "Strategy": {
        "name": STRATEGY, "in": "header", "schema": words(*STRATEGIES),
        "description": "How a replica is chosen for this request.",
    },
    "Session": {
        "name": SESSION, "in": "header", "schema": TEXT,
        "description": "A conversation's name: it stays with its replica where that is no worse.",
    },
    "Deadline": {
        "name": DEADLINE_MS, "in": "header",
        "schema": {"type": "integer", "minimum": 1, "maximum": 10**12 - 1},
        "description": "Milliseconds within which the first byte has to come.",
    },
    "Priority": {
        "name": PRIORITY, "in": "header",
        "schema": {"type": "integer", "minimum": -MAX_PRIORITY, "maximum": MAX_PRIORITY},
        "description": "Of one client's waiting requests the one with the highest goes first.",
    },
}  # fmt: skip

COMPONENTS: Json = {
    "headers": _HEADERS,
    "parameters": _WISHES,
    "securitySchemes": {
        "bearer": {"type": "http", "scheme": "bearer"},
        "xApiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "api-key"},
    },
}
# A key in any of three headers, or none where none is required.
SECURITY: list[Json] = [{}, *({name: []} for name in COMPONENTS["securitySchemes"])]


def ask(
    id_: str, about: str, body: str, said: Said, error: Error, tag: str,
    stream: Stream | None = None,
) -> Json:  # fmt: skip
    """Return the description of a POST that a replica answers; `body` names a schema."""
    answer = _answer(said, stream) | {"headers": {**_ROUTED, **_LIMITS}}
    other = {"4XX": "The replica refuses, in its own words.", "5XX": "All replicas failed."}
    return {
        "operationId": id_,
        "summary": about,
        "tags": [tag],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _WISHES],
        "requestBody": {"required": True, "content": {JSON: {"schema": ref(body)}}},
        "responses": {
            "200": answer,
            **{status: _refusal(status, why, error) for status, why in REFUSALS.items()},
            **{status: {"description": why} for status, why in other.items()},
        },
    }


def tell(
    id_: str, about: str, said: Said, error: Error, tag: str, *, also: tuple[str, ...] = (),
    more: Json | None = None,
) -> Json:  # fmt: skip
    """Return the description of what the gateway itself tells, or refuses with `also` too.

    `more` is added to it: parameters, a body.
    """
    return {
        "operationId": id_,
        "summary": about,
        "tags": [tag],
        **(more or {}),
        "responses": {
            "200": _answer(said),
            **{status: _refusal(status, REFUSALS[status], error)
               for status in sorted({*_READING, *also})},
        },
    }  # fmt: skip


def refuse(id_: str, about: str, error: Error, tag: str) -> Json:
    """Return the description of what is always refused, with 404."""
    told = {status: _refusal(status, REFUSALS[status], error) for status in ("401", "500", "503")}
    responses = {"404": _refusal("404", about, error), **told}
    return {"operationId": id_, "summary": about, "tags": [tag], "responses": responses}


def in_path(name: str, about: str, schema: Json = NAME) -> Json:
    """Return the parameters of a path that holds a name."""
    return {
        "parameters": [
            {"name": name, "in": "path", "required": True, "description": about, "schema": schema}
        ]
    }


def _answer(said: Said, stream: Stream | None = None) -> Json:
    content: Json = {said.media: {"schema": said.schema}}
    if stream is not None:
        # OpenAPI 3.1 has no word for the schema of a stream's pieces.
        content[stream.media] = {"x-covey-piece": stream.piece}
    return {"description": said.about, "content": content}


def _refusal(status: str, why: str, error: Error) -> Json:
    told: Json = {"description": why, "content": {JSON: {"schema": ref(error.schema)}}}
    if status in _RETRIED:
        told["headers"] = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
    if status == "401":
        told["headers"] = {"WWW-Authenticate": {"$ref": "#/components/headers/Authenticate"}}
    return told
