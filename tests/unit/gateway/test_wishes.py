"""What headers and bodies say, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.errors import ApiError
from gateway.routing import STRATEGIES
from gateway.wishes import MAX_PRIORITY, MAX_SESSION, Fields, Wishes, client, wishes


def read(body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> Wishes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return wishes(named, path, msgspec.json.decode(msgspec.json.encode(body), type=Fields))


def talk(*turns: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": turn} for turn in turns]
    return {"model": "m", "messages": messages, **more}


def test_what_a_body_needs() -> None:
    need = read(talk("x" * 1000, stream=True, max_tokens=5, max_completion_tokens=7)).need
    assert (need.model, need.streamed, need.kind, need.max_tokens) == ("m", True, "completions", 7)
    assert 1000 < need.prompt_bytes < 1100
    assert len(need.prefix) == 4
    odd = read({"model": "m", "max_tokens": "many", "user": 5, "stream": 1}, "/v1/embeddings").need
    assert (odd.kind, odd.max_tokens, odd.session, odd.streamed) == ("embeddings", 0, "", False)
    assert (odd.prompt_bytes, odd.prefix) == (0, ())


def test_the_next_turn_begins_with_the_last_wherever_the_other_fields_stand() -> None:
    first = read(talk("a" * 3000)).need.prefix
    second = read({"temperature": 1, "seed": 5, **talk("a" * 3000, "b" * 2000)}).need.prefix
    assert second[: len(first)] == first
    assert len(second) > len(first)
    assert read({**talk("a" * 3000), "model": "n"}).need.prefix[0] != first[0]
    assert read(talk("a" * 3000, tools=[{"x": 1}])).need.prefix[0] != first[0]


def test_sessions_by_header_then_key_then_user() -> None:
    body = talk("x", user="u", prompt_cache_key="k")
    assert read(body, x_covey_session="s").need.session == "s"
    assert read(body).need.session == "k"
    assert read(talk("x", user="u")).need.session == "u"
    assert len(read(talk("x", user="u" * 9999)).need.session) == MAX_SESSION


def test_deadlines_priorities_and_strategies() -> None:
    found = read(talk("x"), x_covey_deadline_ms="1500", x_covey_priority="-3",
                 x_covey_strategy="geo_proximity")  # fmt: skip
    assert (found.deadline_s, found.priority, found.need.strategy) == (1.5, -3, "geo_proximity")
    assert read(talk("x")) == Wishes(read(talk("x")).need, None, 0)
    assert read(talk("x"), x_covey_priority="99999").priority == MAX_PRIORITY
    assert read(talk("x"), x_covey_deadline_ms="-1").deadline_s == -0.001


@pytest.mark.parametrize(
    ("header", "value", "says"),
    [
        ("x_covey_strategy", "best", "names no strategy: 'best'. Use one of latency_aware, round"),
        ("x_covey_deadline_ms", "soon", "x-covey-deadline-ms is no integer: 'soon'"),
        ("x_covey_deadline_ms", "1.5", "no integer"),
        ("x_covey_priority", "", "x-covey-priority is no integer"),
    ],
)
def test_what_makes_no_sense_is_refused(header: str, value: str, says: str) -> None:
    if not value:
        header, value = header, "high"
    with pytest.raises(ApiError) as refused:
        read(talk("x"), **{header: value})
    assert refused.value.status == 400
    assert says in refused.value.line()
    assert all(name in refused.value.line() for name in STRATEGIES) or header != "x_covey_strategy"


def test_clients_are_told_apart_by_key_then_address_and_keys_are_not_kept() -> None:
    key = {"Authorization": "Bearer secret"}
    assert client(key, "1.2.3.4") == client(key, "5.6.7.8") != client({}, "1.2.3.4")
    assert "secret" not in client(key, None)
    assert client({"x-api-key": "k"}, "a") != client({"x-api-key": "l"}, "a")
    assert client({}, None) == ""
