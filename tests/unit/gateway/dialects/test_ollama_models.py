"""Ollama's lists of models, of a router with one that can be asked and one that cannot."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from gateway.dialects import ollama_models as models
from gateway.dialects.port import Refused
from gateway.routing import Replica, Router

OFFSET = 1_700_000_000.0
SEEN = "2023-11-14T22:13:30.000000Z"


@pytest.fixture
def entries() -> list[dict[str, Any]]:
    router = Router("round_robin", Random(1))
    heads = [
        Replica("den", "http://10.0.0.1:1", "mesh", ("covey-mini",), 256),
        Replica("box", "http://10.0.0.2:1", "mesh", ("covey-mini",), 512),
        Replica("shed", "http://10.0.0.3:1", "named", ("big:70b",)),
    ]
    router.update("mesh", heads, 10.0)
    router.check_failed("http://10.0.0.3:1", "no answer within 3 s")
    return router.models(11.0)


def test_tags(entries: Any) -> None:
    big, mini = json.loads(models.tags(entries, OFFSET))["models"]
    assert (big["name"], mini["name"], mini["model"]) == ("big:70b", "covey-mini", "covey-mini")
    assert mini["modified_at"] == SEEN
    assert len(mini["digest"]) == 64 and mini["digest"] != big["digest"]
    assert (mini["size"], mini["details"]["family"]) == (0, "covey")
    assert models.tags(entries, OFFSET) == models.tags(entries, OFFSET)
    assert json.loads(models.tags([], OFFSET)) == {"models": []}


def test_running_are_those_that_can_be_asked(entries: Any) -> None:
    [mini] = json.loads(models.running(entries))["models"]
    assert (mini["name"], mini["context_length"]) == ("covey-mini", 512)
    assert mini["expires_at"] == "2318-01-01T00:00:00Z"


@pytest.mark.parametrize("ask", [{"model": "covey-mini"}, {"name": "covey-mini:latest"}])
def test_show(entries: Any, ask: Any) -> None:
    shown = json.loads(models.show(json.dumps(ask).encode(), entries, OFFSET))
    info = shown["model_info"]
    assert info[f"{info['general.architecture']}.context_length"] == 512
    assert (shown["parameters"], shown["modified_at"]) == ("num_ctx 512", SEEN)
    assert shown["capabilities"] == ["completion"]
    assert "box, den" in shown["modelfile"]


def test_show_of_one_whose_context_is_not_known(entries: Any) -> None:
    shown = json.loads(models.show(b'{"model": "big:70b"}', entries, OFFSET))
    assert (shown["parameters"], "covey.context_length" in shown["model_info"]) == ("", False)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"model": "big"}', 404, "model 'big' not found"),
        (b"{}", 400, "model is required"),
        (b"[", 400, "invalid request"),
        (b'{"model": 5}', 400, "invalid request"),
        (b"[" * 100_000, 400, "invalid request"),
    ],
)
def test_show_refuses(entries: Any, body: bytes, status: int, said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        models.show(body, entries, OFFSET)
    assert caught.value.status == status


def test_version_is_one_that_clients_can_compare() -> None:
    version = json.loads(models.version())["version"]
    assert [part.isdecimal() for part in version.split(".")] == [True] * 3
