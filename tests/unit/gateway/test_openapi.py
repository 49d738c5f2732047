"""The description against the application: each route is described, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import aiohttp
import pytest

from gateway.app import make_app
from gateway.config import Config
from gateway.dialects.served import DIALECTS, by_name
from gateway.keys.guard import is_open
from gateway.openapi import anthropic, dashboard, ollama, openai, own, responses
from gateway.openapi.document import document

METHODS = frozenset({"get", "post", "put", "delete", "patch", "head", "options"})
DOCUMENT = document("1.2.3")
OPERATIONS = {
    (path, method): operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method in METHODS
}
ALL = pytest.mark.parametrize("at", OPERATIONS, ids=" ".join)


def references(value: Any) -> Iterator[str]:
    """Yield all that is referred to in a part of the description."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_each_route_is_described_and_each_description_is_a_route() -> None:
    served: dict[str, set[str]] = {}
    for route in make_app(Config(), None).router.routes():
        assert route.resource is not None
        served.setdefault(route.resource.canonical, set()).add(route.method.lower())
    described: dict[str, set[str]] = {}
    for path, method in OPERATIONS:
        described.setdefault(path, set()).add(method)
    assert described.keys() == served.keys()
    for path, methods in served.items():
        if methods != {"*"}:
            assert described[path] == methods - {"head"}, path


def test_what_is_referred_to_is_there_and_all_of_it_is_referred_to() -> None:
    there = {
        f"#/components/{kind}/{name}"
        for kind, named in DOCUMENT["components"].items()
        if kind != "securitySchemes"
        for name in named
    }
    assert set(references(DOCUMENT)) == there


def test_no_two_operations_have_the_same_name() -> None:
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)


def test_no_schema_is_said_twice() -> None:
    """Each module has names of its own: one does not take another's place."""
    modules = (anthropic, dashboard, ollama, openai, own, responses)
    for what in ("SCHEMAS", "PATHS"):
        names = [name for module in modules for name in getattr(module, what)]
        assert len(set(names)) == len(names)


@ALL
def test_refusals_have_the_form_that_the_path_gives_them(at: tuple[str, str]) -> None:
    """Of the dialects' own error bodies none is outside its schema."""
    path, _ = at
    forms = DIALECTS | by_name(tuple)
    dialect = forms.get("/api/chat" if path.startswith("/api/") else path)
    for status, answer in OPERATIONS[at]["responses"].items():
        if not status.isdecimal() or int(status) < 400:
            continue
        name = answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        schema = DOCUMENT["components"]["schemas"][name]
        body = json.loads(dialect.error(int(status), "no", "x")) if dialect else {"error": {}}
        assert set(schema["required"]) == set(body), status
        kind = schema["properties"]["error"]["type"]
        assert kind == ("object" if isinstance(body["error"], dict) else "string"), status


@ALL
def test_paths_without_a_key_are_those_that_the_guard_lets_through(at: tuple[str, str]) -> None:
    needs_none = OPERATIONS[at].get("security") == []
    assert needs_none == is_open(at[0])
    assert ("401" in OPERATIONS[at]["responses"]) != needs_none


async def test_it_is_served(gateway: Any) -> None:
    url = await gateway(wait=False)
    async with aiohttp.ClientSession() as session, session.get(url + "/openapi.json") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert await answer.json() == document(version("covey"))
