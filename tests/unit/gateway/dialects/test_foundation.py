"""The earlier system's endpoints: /generate, /peers, /peers/metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.serve import openai
from agent.engine.serve.forms import Choice, CompletionForm
from agent.engine.serve.schema import parse_completion
from gateway.dialects import foundation
from gateway.dialects.foundation import Generate
from gateway.dialects.port import Refused, Translated
from gateway.routing import Fault, Replica, Router

USAGE = openai.usage(8, 2, 0)
generate = Generate(lambda: ("covey-mini",))
Json = dict[str, Any]


def ask(**fields: Any) -> Translated:
    return generate.ask(json.dumps({"prompt": "say ", **fields}).encode(), 0.0)


def form(*, include_usage: bool) -> CompletionForm:
    return CompletionForm("1", 1, "covey-mini", include_usage=include_usage, logprobs=False)


def events(asked: Translated, texts: Sequence[str]) -> list[Json]:
    told = form(include_usage=True)
    chunks = [told.delta(0, text) for text in texts]
    chunks += [told.end(0, "length", {}), told.counted(USAGE)]
    said = b"".join([*map(asked.reader.event, chunks), asked.reader.end()])
    assert said.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in said[:-2].split(b"\n\n")]


def test_what_its_users_knew() -> None:
    asked = ask(max_tokens=7, temperature=0.5)
    assert (asked.path, asked.streamed) == ("/v1/completions", False)
    parsed = parse_completion(msgspec.json.encode(asked.body))
    assert (parsed.model, parsed.prompt, parsed.max_tokens) == ("covey-mini", "say ", 7)
    assert parsed.sampling.temperature == 0.5
    answer = form(include_usage=False).whole([Choice(["Hi"])], {"usage": USAGE})
    assert json.loads(asked.reader.whole(answer)) == {
        "text": "Hi", "model": "covey-mini", "finish_reason": "stop", "usage": USAGE,
    }  # fmt: skip


def test_a_stream() -> None:
    asked = ask(stream=True, temperature=None)
    assert (asked.streamed, asked.content_type) == (True, "text/event-stream")
    parsed = parse_completion(msgspec.json.encode(asked.body))
    assert (parsed.include_usage, parsed.max_tokens) == (True, 512)
    assert events(asked, ["Hi", "", " there"]) == [
        {"text": "Hi", "done": False},
        {"text": " there", "done": False},
        {"text": "", "done": True, "model": "covey-mini", "finish_reason": "length",
         "usage": USAGE},
    ]  # fmt: skip
    broken = ask(stream=True).reader.broken("stage 1 is gone", "server_error")
    assert broken == b'data: {"error":"stage 1 is gone"}\n\n'


def test_counts_may_come_at_any_time() -> None:
    reader = ask(stream=True).reader
    assert reader.event({"choices": [], "usage": USAGE, "model": "covey-mini"}) == b""
    assert reader.event({"choices": [{"text": "", "finish_reason": "stop"}]}) == b""
    assert reader.event({"choices": [{"text": "", "finish_reason": None}]}) == b""
    last = json.loads(reader.end().removeprefix(b"data: "))
    assert (last["usage"], last["model"], last["finish_reason"]) == (USAGE, "covey-mini", "stop")


@given(st.lists(st.text()))
def test_the_texts_of_a_stream_add_up(texts: list[str]) -> None:
    assert "".join(event["text"] for event in events(ask(stream=True), texts)) == "".join(texts)


def test_other_fields_of_a_completion_pass() -> None:
    found = ask(top_k=5, stop=["END"], model="big", n=4).body
    assert (found["top_k"], found["stop"], found["model"], found["n"]) == (5, ["END"], "big", 1)


@pytest.mark.parametrize(
    ("known", "body", "status", "said"),
    [
        ((), {"prompt": "a"}, 503, "there is none yet"),
        (("b", "a"), {"prompt": "a"}, 400, "there are 2: a, b"),
        (("a",), {"prompt": ""}, 400, "`prompt` is empty"),
        (("a",), {}, 400, "prompt"),
        (("a",), {"prompt": ["a"]}, 400, "prompt"),
        (("a",), {"prompt": "a", "stream": 1}, 400, "stream"),
        (("a",), [], 400, "not valid"),
    ],
)
def test_refusals(known: Any, body: Any, status: int, said: str) -> None:
    with pytest.raises(Refused) as caught:
        Generate(lambda: known).ask(json.dumps(body).encode(), 0.0)
    assert caught.value.status == status
    assert said in caught.value.message
    assert json.loads(generate.error(status, said, "")) == {"error": said}


@given(st.binary())
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(Refused):
        generate.ask(raw, 0.0)


def test_what_is_no_answer_is_an_error() -> None:
    for answer in ({}, {"choices": [{"text": 5}]}):
        with pytest.raises(msgspec.ValidationError):
            ask().reader.whole(answer)
        with pytest.raises(msgspec.ValidationError):
            ask(stream=True).reader.event(answer)


@pytest.fixture
def view() -> list[Json]:
    router = Router("round_robin", Random(1))
    urls = ["http://10.0.0.1:1", "http://10.0.0.2:1"]
    router.update("mesh", [Replica("den", urls[0], "mesh", ("covey-mini",), 256)], 0.0)
    router.update("named", [Replica("shed", urls[1], "named", ("big",))], 0.0)
    router.check_passed(urls[0], None, 1.0)
    router.begin(urls[0])
    router.fault(urls[1], Fault.UNREACHABLE, "cannot be reached: 10.0.0.2:1", 1.0)
    return router.view(1.5)


def test_peers_and_their_metrics_do_not_tell_where_they_are(view: Any) -> None:
    told = foundation.peers(view)
    assert json.loads(told) == {
        "count": 2,
        "peers": [
            {"id": "den", "source": "mesh", "models": ["covey-mini"], "healthy": True},
            {"id": "shed", "source": "named", "models": ["big"], "healthy": False},
        ],
    }
    metrics = foundation.peers_metrics(view)
    den, shed = json.loads(metrics)["peers"]
    assert (den["id"], den["healthy"], den["in_flight"], den["requests"]) == ("den", True, 1, 1)
    assert not shed["healthy"] and shed["cooling_s"] > 0
    assert b"10.0.0" not in told + metrics
