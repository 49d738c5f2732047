"""Anthropic's Messages API: requests as chat completions, answers as messages and their events."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.anthropic import CountTokens, Messages
from gateway.dialects.port import Refused

NOW = 1_800_000_000.5
HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
LOOK = {"name": "look", "description": "Look it up", "input_schema": SCHEMA}


def asked(**fields: Any) -> dict[str, Any]:
    body = {"model": "m", "max_tokens": 9, "messages": HELLO, **fields}
    return Messages().ask(json.dumps(body).encode(), NOW).body


def reader(**fields: Any) -> Any:
    body = {"model": "m", "max_tokens": 9, "messages": HELLO, **fields}
    return Messages().ask(json.dumps(body).encode(), NOW).reader


def streamed(one: Any, chunks: list[dict[str, Any]]) -> bytes:
    return b"".join([*map(one.event, chunks), one.end()])


def gathered(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that a stream adds up to, as a client makes it."""
    message: dict[str, Any] = {}
    arguments: dict[int, str] = {}
    for event in events:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
            case "content_block_delta":
                block = message["content"][event["index"]]
                if event["delta"]["type"] == "text_delta":
                    block["text"] += event["delta"]["text"]
                else:
                    arguments.setdefault(event["index"], "")
                    arguments[event["index"]] += event["delta"]["partial_json"]
            case "content_block_stop":
                if event["index"] in arguments:
                    block = message["content"][event["index"]]
                    block["input"] = json.loads(arguments[event["index"]])
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
    return message


@given(data=st.data())
def test_a_stream_adds_up_to_the_whole_message(
    data: st.DataObject, scripts: Any, events: Any
) -> None:
    script = data.draw(scripts)
    stream = events(streamed(reader(stream=True), script.chunks()))
    assert gathered(stream) == json.loads(reader().whole(script.whole()))


@given(data=st.data())
def test_the_order_of_events(data: st.DataObject, scripts: Any, events: Any) -> None:
    stream = events(streamed(reader(stream=True), data.draw(scripts).chunks()))
    names = " ".join(event["type"].removeprefix("content_block_") for event in stream)
    assert re.fullmatch(
        r"message_start( start( ping)?( delta)* stop)* message_delta message_stop", names
    )


def test_a_stream_event_by_event(script: Any, events: Any) -> None:
    said = script(("Hi", " you"), (("look", ('{"ci', 'ty":"X"}')),), "tool_calls")
    text = {"type": "text", "text": ""}
    tool = {"type": "tool_use", "id": "call_0", "name": "look", "input": {}}
    start, *rest = events(streamed(reader(stream=True), said.chunks()))
    assert start["message"] == {
        "id": "msg_7f", "type": "message", "role": "assistant", "model": "m", "content": [],
        "stop_reason": None, "stop_sequence": None,
        "usage": {"input_tokens": 0, "cache_creation_input_tokens": 0,
                  "cache_read_input_tokens": 0, "output_tokens": 0},
    }  # fmt: skip
    assert rest == [
        {"type": "content_block_start", "index": 0, "content_block": text},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_delta", "index": 0,
         "delta": {"type": "text_delta", "text": " you"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": tool},
        {"type": "content_block_delta", "index": 1,
         "delta": {"type": "input_json_delta", "partial_json": '{"ci'}},
        {"type": "content_block_delta", "index": 1,
         "delta": {"type": "input_json_delta", "partial_json": 'ty":"X"}'}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
         "usage": {"input_tokens": 7, "cache_creation_input_tokens": 0,
                   "cache_read_input_tokens": 4, "output_tokens": 5}},
        {"type": "message_stop"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("finish", "stop", "told"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("stop", "other", ("end_turn", None)),
        ("stop", 7, ("end_turn", None)),
        ("length", None, ("max_tokens", None)),
        ("tool_calls", None, ("tool_use", None)),
        ("content_filter", None, ("refusal", None)),
        ("new to us", None, ("end_turn", None)),
        (None, None, ("end_turn", None)),
    ],
)
def test_why_it_stopped(script: Any, finish: Any, stop: Any, told: Any) -> None:
    answer = script(("Hi",), (), finish).whole()
    answer["choices"][0]["stop_reason"] = stop
    message = json.loads(reader(stop_sequences=["END"]).whole(answer))
    assert (message["stop_reason"], message["stop_sequence"]) == told


def test_a_call_that_ends_with_stop_is_a_use_of_a_tool(script: Any) -> None:
    message = json.loads(reader().whole(script((), (("look", ()),), "stop").whole()))
    assert message["stop_reason"] == "tool_use"
    assert message["content"] == [
        {"type": "tool_use", "id": "call_0", "name": "look", "input": {}}
    ]  # fmt: skip


def test_arguments_that_are_no_object(script: Any) -> None:
    def whole(arguments: str, reason: str) -> Any:
        answer = script((), (("look", (arguments,)),), reason).whole()
        return json.loads(reader().whole(answer))["content"][0]["input"]

    assert whole('{"cut o', "length") == {}
    with pytest.raises(msgspec.DecodeError):
        whole('{"cut o', "tool_calls")
    with pytest.raises(ValueError, match="no JSON object"):
        whole("[]", "length")


def test_an_error_event_and_errors(events: Any) -> None:
    [event] = events(reader().broken("it broke", "server_error"))
    assert event == {"type": "error", "error": {"type": "api_error", "message": "it broke"}}
    types = {
        status: json.loads(Messages().error(status, "no", ""))["error"]["type"]
        for status in (400, 401, 403, 404, 413, 429, 500, 502, 503)
    }
    assert types == {
        400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
        404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
        500: "api_error", 502: "api_error", 503: "overloaded_error",
    }  # fmt: skip


def test_an_answer_without_an_id_gets_the_time(script: Any) -> None:
    answer = {**script(("Hi",)).whole(), "id": None}
    assert json.loads(reader().whole(answer))["id"] == f"msg_{int(NOW * 1e6):x}"


def test_a_simple_request() -> None:
    assert asked() == {"model": "m", "max_tokens": 9, "messages": HELLO}
    assert asked(stream=True) == {
        "model": "m", "max_tokens": 9, "messages": HELLO, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_what_is_asked_of_the_sampling() -> None:
    given = {"temperature": 0.0, "top_p": 0.9, "top_k": 40}
    body = asked(**given, stop_sequences=["END"], metadata={"user_id": "u"}, service_tier="auto")
    assert body == {"model": "m", "max_tokens": 9, "messages": HELLO, **given, "stop": ["END"]}
    assert "stop" not in asked(stop_sequences=[])
    assert asked(thinking={"type": "enabled", "budget_tokens": 1024})["chat_template_kwargs"] == {
        "enable_thinking": True
    }
    config = {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"}
    body = asked(output_config=config)
    named = {"name": "answer", "schema": SCHEMA, "strict": True}
    assert body["response_format"] == {"type": "json_schema", "json_schema": named}
    assert body["reasoning_effort"] == "low"
    assert asked(thinking={"type": "disabled"})["chat_template_kwargs"] == {
        "enable_thinking": False
    }


def test_a_conversation_with_tools() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"},
                                     {"type": "text", "text": "b",
                                      "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "I look"},
            {"type": "tool_use", "id": "t1", "name": "look", "input": {"city": "Ö"}},
            {"type": "tool_use", "id": "t2", "name": "look", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1",
             "content": [{"type": "text", "text": "rain"}]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "none", "is_error": True},
            {"type": "text", "text": "and?"},
        ]},
        {"role": "assistant", "content": "wet"},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t3"}]},
    ]  # fmt: skip
    system = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]
    assert asked(messages=messages, system=system)["messages"] == [
        {"role": "system", "content": "Be\nbrief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "I look", "tool_calls": [
            {"id": "t1", "type": "function",
             "function": {"name": "look", "arguments": '{"city":"Ö"}'}},
            {"id": "t2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: none"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "wet"},
        {"role": "tool", "tool_call_id": "t3", "content": ""},
    ]  # fmt: skip


def test_tools_and_choices() -> None:
    function = {"name": "look", "description": "Look it up", "parameters": SCHEMA}
    body = asked(tools=[LOOK, {**LOOK, "type": "custom", "description": None}])
    assert body["tools"] == [
        {"type": "function", "function": function},
        {"type": "function", "function": {"name": "look", "parameters": SCHEMA}},
    ]
    assert "tool_choice" not in body

    def choice(**fields: Any) -> tuple[Any, Any]:
        body = asked(tools=[LOOK], tool_choice=fields)
        return body.get("tool_choice"), body.get("parallel_tool_calls")

    named = {"type": "function", "function": {"name": "look"}}
    assert choice(type="auto") == ("auto", None)
    assert choice(type="none") == ("none", None)
    assert choice(type="any", disable_parallel_tool_use=True) == ("required", False)
    assert choice(type="tool", name="look", disable_parallel_tool_use=False) == (named, True)
    assert "tool_choice" not in asked(tool_choice={"type": "auto"})
    assert asked(tool_choice={"type": "any"})["tool_choice"] == "required"


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "needs a `source`"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "file", "file_id": "f"}}]}]}, "needs a `source`"),
        ({"messages": [{"role": "system", "content": [IMAGE]}, *HELLO]}, "'image'"),
        ({"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}]}]}, "'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "type 'text'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
         "no `tool_use_id`"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}, *HELLO]},
         "needs `id` and `name`"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "The"}]}, "end with a user's"),
        ({"messages": []}, "length"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": ""}, "model"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
         "'web_search_20250305', which Anthropic defines"),
        ({"tools": [{"name": "look"}]}, "no `input_schema`"),
        ({"tool_choice": {"type": "tool"}}, "needs a `name`"),
        ({"tool_choice": {"type": "some"}}, "tool_choice"),
        ({"mcp_servers": [{"type": "url"}]}, "`mcp_servers` are not served"),
        ({"output_config": {"format": {"type": "xml"}}}, "format"),
    ],
)  # fmt: skip
def test_what_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)) as caught:
        asked(**fields)
    assert caught.value.status == 400


def test_images_are_shown_to_models_that_see_and_not_counted() -> None:
    linked = {"type": "image", "source": {"type": "url", "url": "https://x/a.png"}}
    blocks = [{"type": "text", "text": "What is this?"}, {"type": "image", "source": {
        "type": "base64", "media_type": "image/png", "data": "AA=="}}, linked]  # fmt: skip
    fields = {"model": "m", "messages": [*HELLO, {"role": "user", "content": blocks}]}
    body = json.dumps({**fields, "max_tokens": 5}).encode()
    translated = Messages().ask(body, NOW)
    assert translated.shown == ("messages[1].content[1]", "image")
    assert translated.body["messages"][1]["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "https://x/a.png"}},
    ]
    with pytest.raises(Refused, match="only text is counted"):
        CountTokens().ask(body, NOW)
    assert Messages().ask(json.dumps({**fields, "messages": HELLO, "max_tokens": 5}).encode(),
                          NOW).shown is None  # fmt: skip


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"{}", b'{"model":"m"}', b"[" * 10**5])
def test_what_is_no_request(body: bytes) -> None:
    for endpoint in (Messages(), CountTokens()):
        with pytest.raises(Refused, match="The request is not valid"):
            endpoint.ask(body, NOW)


def test_counting_asks_for_the_tokens_of_the_same_prompt() -> None:
    body = {"model": "m", "messages": HELLO, "system": "Be brief", "tools": [LOOK]}
    translated = CountTokens().ask(json.dumps(body).encode(), NOW)
    assert (translated.path, translated.streamed) == ("/tokenize", False)
    whole = asked(**body)
    assert translated.body == {name: whole[name] for name in ("model", "messages", "tools")}
    assert json.loads(translated.reader.whole({"tokens": [1, 2, 3]})) == {"input_tokens": 3}
    with pytest.raises(LookupError):
        translated.reader.whole({})


def test_a_server_that_counts_no_messages_is_not_taken_for_one_without_tokens() -> None:
    body = {"model": "m", "messages": HELLO}
    reader = CountTokens().ask(json.dumps(body).encode(), NOW).reader
    with pytest.raises(Refused, match="cannot count the tokens of messages") as refused:
        reader.whole({"tokens": []})
    assert refused.value.status == 501


def test_a_server_that_cannot_count_says_so() -> None:
    missing = json.loads(CountTokens().error(404, "There is no /tokenize here", "not_found"))
    assert missing["error"]["message"] == "The server of this model cannot count tokens"
    unknown = json.loads(CountTokens().error(404, "no such model", "model_not_found"))
    assert unknown["error"] == {"type": "not_found_error", "message": "no such model"}
