"""OpenAI's Responses API: requests as chat completions, answers as responses and their events."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.port import Refused
from gateway.dialects.responses import Responses

NOW = 1_800_000_000.5
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
LOOK = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}
HELLO = [{"role": "user", "content": "hello"}]


def asked(**fields: Any) -> dict[str, Any]:
    body = {"model": "m", "input": "hello", **fields}
    return Responses().ask(json.dumps(body).encode(), NOW).body


def reader(**fields: Any) -> Any:
    body = {"model": "m", "input": "hello", **fields}
    return Responses().ask(json.dumps(body).encode(), NOW).reader


def streamed(one: Any, chunks: list[dict[str, Any]]) -> bytes:
    return b"".join([*map(one.event, chunks), one.end()])


@given(data=st.data())
def test_a_stream_ends_with_the_whole_response(
    data: st.DataObject, scripts: Any, events: Any
) -> None:
    script = data.draw(scripts)
    whole = json.loads(reader(stream=True).whole(script.whole()))
    stream = events(streamed(reader(stream=True), script.chunks()))
    assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
    assert stream[-1]["type"] == f"response.{whole['status']}"
    assert stream[-1]["response"] == whole
    assert [event["item"] for event in stream if event["type"].endswith("item.done")] == (
        whole["output"]
    )


@given(data=st.data())
def test_deltas_add_up(data: st.DataObject, scripts: Any, events: Any) -> None:
    said: dict[int, str] = {}
    done: dict[int, str] = {}
    for event in events(streamed(reader(stream=True), data.draw(scripts).chunks())):
        match event["type"]:
            case "response.output_item.added":
                assert event["output_index"] == len(said)
                said[event["output_index"]] = ""
            case "response.output_text.delta" | "response.function_call_arguments.delta":
                said[event["output_index"]] += event["delta"]
            case "response.output_text.done":
                done[event["output_index"]] = event["text"]
            case "response.function_call_arguments.done":
                done[event["output_index"]] = event["arguments"]
    assert said == done


def test_a_stream_event_by_event(script: Any, events: Any) -> None:
    said = script(("Hi", " you"), (("look", ('{"ci', 'ty":"X"}')),), "tool_calls")
    stream = events(streamed(reader(stream=True), said.chunks()))
    text = {"output_index": 0, "item_id": "msg_7f_0", "content_index": 0}
    call = {"output_index": 1, "item_id": "fc_7f_1"}
    message = {"id": "msg_7f_0", "type": "message", "role": "assistant"}
    function = {"id": "fc_7f_1", "type": "function_call", "call_id": "call_0", "name": "look"}
    none = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    whole = {**none, "text": "Hi you"}
    given = '{"city":"X"}'
    created, begun, *rest, completed = stream
    for event, name in ((created, "response.created"), (begun, "response.in_progress")):
        assert event["type"] == name
        assert (event["response"]["status"], event["response"]["output"]) == ("in_progress", [])
        assert event["response"]["usage"] is None
    for event in rest:
        del event["sequence_number"]
    assert rest == [
        {"type": "response.output_item.added", "output_index": 0,
         "item": {**message, "status": "in_progress", "content": []}},
        {"type": "response.content_part.added", **text, "part": none},
        {"type": "response.output_text.delta", **text, "delta": "Hi", "logprobs": []},
        {"type": "response.output_text.delta", **text, "delta": " you", "logprobs": []},
        {"type": "response.output_text.done", **text, "text": "Hi you", "logprobs": []},
        {"type": "response.content_part.done", **text, "part": whole},
        {"type": "response.output_item.done", "output_index": 0,
         "item": {**message, "status": "completed", "content": [whole]}},
        {"type": "response.output_item.added", "output_index": 1,
         "item": {**function, "status": "in_progress", "arguments": ""}},
        {"type": "response.function_call_arguments.delta", **call, "delta": '{"ci'},
        {"type": "response.function_call_arguments.delta", **call, "delta": 'ty":"X"}'},
        {"type": "response.function_call_arguments.done", **call, "name": "look",
         "arguments": given},
        {"type": "response.output_item.done", "output_index": 1,
         "item": {**function, "status": "completed", "arguments": given}},
    ]  # fmt: skip
    assert completed["type"] == "response.completed"


def test_a_response_object(script: Any) -> None:
    fields = {
        "instructions": "Be brief", "max_output_tokens": 5, "metadata": {"a": "b"},
        "temperature": 0.5, "tools": [LOOK], "tool_choice": "required", "store": True,
    }  # fmt: skip
    response = json.loads(reader(**fields).whole(script(("Hi",)).whole()))
    [item] = response.pop("output")
    assert item["content"][0]["text"] == "Hi"
    assert response == {
        "id": "resp_7f", "object": "response", "created_at": 1_800_000_000, "status": "completed",
        "background": False, "error": None, "incomplete_details": None, "model": "m",
        "previous_response_id": None, "truncation": "disabled", "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": None}, "text": {"format": {"type": "text"}},
        "top_p": None, "user": None, **fields, "store": False,
        "usage": {
            "input_tokens": 11, "input_tokens_details": {"cached_tokens": 4,
                                                         "cache_write_tokens": 0},
            "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 16,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("finish", "why"),
    [("length", "max_output_tokens"), ("content_filter", "content_filter")],
)
def test_an_answer_that_was_cut_off(script: Any, events: Any, finish: str, why: str) -> None:
    said = script(("Hi",), (("look", ("{",)),), finish)
    response = json.loads(reader().whole(said.whole()))
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": why})
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    stream = events(streamed(reader(), said.chunks()))
    assert stream[-1]["type"] == "response.incomplete"


def test_a_stream_that_broke(script: Any, events: Any) -> None:
    one = reader(stream=True)
    chunks = script(("Hi", " you"), ()).chunks()
    stream = events(b"".join(map(one.event, chunks[:2])) + one.broken("it broke", "c"))
    failed = stream[-1]
    assert (failed["type"], failed["sequence_number"]) == ("response.failed", len(stream) - 1)
    assert failed["response"]["error"] == {"code": "server_error", "message": "it broke"}
    assert failed["response"]["status"] == "failed"
    [item] = failed["response"]["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "Hi")
    [alone] = events(reader().broken("it broke", "c"))
    assert (alone["type"], alone["sequence_number"]) == ("response.failed", 0)


def test_errors() -> None:
    error = {"message": "no", "type": "invalid_request_error", "param": None}
    assert json.loads(Responses().error(404, "no", "model_not_found")) == {
        "error": {**error, "code": "model_not_found"}
    }
    assert json.loads(Responses().error(400, "no", "invalid_request_error")) == {
        "error": {**error, "code": None}
    }
    assert json.loads(Responses().error(503, "no", "server_error"))["error"]["type"] == (
        "server_error"
    )


def test_a_simple_request() -> None:
    assert asked() == {"model": "m", "messages": HELLO}
    assert asked(stream=True) == {
        "model": "m", "messages": HELLO, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_what_is_passed_on_and_what_has_no_effect() -> None:
    body = asked(
        instructions="Be brief", max_output_tokens=5, temperature=0, top_p=0.9, user="u",
        reasoning={"effort": "low", "summary": "auto"}, text={"verbosity": "low"},
        store=True, include=["reasoning.encrypted_content"], prompt_cache_key="k",
        truncation="disabled", service_tier="auto", metadata={"a": "b"}, parallel_tool_calls=True,
        previous_response_id=None, tool_choice="auto",
    )  # fmt: skip
    assert body == {
        "model": "m", "messages": [{"role": "system", "content": "Be brief"}, *HELLO],
        "max_tokens": 5, "temperature": 0, "top_p": 0.9, "user": "u", "reasoning_effort": "low",
        "verbosity": "low",
    }  # fmt: skip


def test_a_conversation_with_tools() -> None:
    items = [
        {"role": "developer", "content": "Be brief"},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look",
         "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": '{"a":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2",
         "output": [{"type": "input_text", "text": "sun"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]},
        {"type": "function_call_output", "call_id": "c3", "output": ""},
        {"type": "function_call", "call_id": "c4", "name": "look", "arguments": "{}"},
    ]  # fmt: skip

    def call(id_: str, arguments: str) -> dict[str, Any]:
        function = {"name": "look", "arguments": arguments}
        return {"id": id_, "type": "function", "function": function}

    assert asked(input=items)["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "I look",
         "tool_calls": [call("c1", "{}"), call("c2", '{"a":1}')]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "sun"},
        {"role": "assistant", "content": "No"},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "assistant", "content": "", "tool_calls": [call("c4", "{}")]},
    ]  # fmt: skip


def test_tools_and_formats() -> None:
    function = {"name": "look", "parameters": SCHEMA, "strict": True}
    body = asked(tools=[LOOK], tool_choice={"type": "function", "name": "look"},
                 parallel_tool_calls=False)  # fmt: skip
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert body["parallel_tool_calls"] is False

    def format_(**fields: Any) -> Any:
        return asked(text={"format": fields}).get("response_format")

    named = {"name": "place", "schema": SCHEMA, "strict": True}
    assert format_(type="text") is None
    assert format_(type="json_object") == {"type": "json_object"}
    assert format_(type="json_schema", **named) == {"type": "json_schema", "json_schema": named}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"previous_response_id": "resp_1"}, "`previous_response_id` is not served"),
        ({"conversation": "conv_1"}, "`conversation` is not served"),
        ({"prompt": {"id": "p"}}, "`prompt` is not served"),
        ({"background": True}, "`background` is not served"),
        ({"include": ["message.output_text.logprobs"]}, "message.output_text.logprobs"),
        ({"top_logprobs": 2}, "`top_logprobs` is not served"),
        ({"truncation": "auto"}, "`truncation` is not served"),
        ({"tools": [{"type": "web_search"}]}, "'web_search' runs at OpenAI"),
        ({"tools": [{"type": "function"}]}, "needs a `name`"),
        ({"tool_choice": {"type": "file_search"}}, "`tool_choice` must be"),
        ({"text": {"format": {"type": "json_schema"}}}, "needs a `schema`"),
        ({"text": {"format": {"type": "xml"}}}, "format"),
        ({"input": []}, "`input` is empty"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
         "`input[0].content[0]` does not hold its image"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}]},
         "does not hold its file"),
        ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "u"}]}]},
         "`input[0].content[0]` is of type 'input_image', but only text is read there"),
        ({"input": [{"type": "function_call_output", "call_id": "c",
                     "output": [{"type": "input_image", "image_url": "u"}]}]}, "only text is read"),
        ({"input": [{"role": "user", "content": [{"type": "hologram"}]}]}, "'hologram'"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "send it whole"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "'web_search_call'"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "needs `call_id` and `name`"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "needs `call_id` and"),
        ({"input": [{"role": "robot", "content": "x"}]}, "needs a `role`"),
        ({"input": [{"role": "user"}]}, "a `content`"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": 5}, "input"),
        ({"model": None}, "model"),
    ],
)  # fmt: skip
def test_what_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)) as caught:
        asked(**fields)
    assert caught.value.status == 400


def test_what_is_shown_to_models_that_see() -> None:
    parts = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]
    items = [{"role": "user", "content": "hello"}, {"role": "user", "content": parts}]
    body = json.dumps({"model": "m", "input": items}).encode()
    translated = Responses().ask(body, NOW)
    assert translated.shown == ("input[1].content[1]", "input_image")
    assert translated.body["messages"][1]["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
        {"type": "file",
         "file": {"file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]  # fmt: skip
    assert Responses().ask(json.dumps({"model": "m", "input": "hello"}).encode(), NOW).shown is None
