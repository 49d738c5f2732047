"""What requests may hold, and which field a refusal names."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.generation import Sampling
from agent.engine.serve.offers import Offer
from agent.engine.serve.openai import ApiError
from agent.engine.serve.sampling import SamplingFields
from agent.engine.serve.schema import ChatAsk, CompletionAsk, parse_chat, parse_completion

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}


def assistant(arguments: str) -> dict[str, Any]:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def chat(**fields: Any) -> ChatAsk:
    return parse_chat(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def completion(**fields: Any) -> CompletionAsk:
    return parse_completion(json.dumps({"model": "m", "prompt": "p", **fields}).encode())


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    return caught.value


def test_defaults() -> None:
    ask = chat()
    assert (ask.stream, ask.include_usage, ask.max_tokens, ask.stops) == (False, False, None, ())
    assert ask.sampling == Sampling()
    assert completion().max_tokens == 16


def test_sampling_is_taken_over() -> None:
    ask = chat(
        temperature=0, top_p=0.5, top_k=-1, min_p=0.1, seed=-7, frequency_penalty=1,
        presence_penalty=-1, repetition_penalty=1.1, logit_bias={"50": -100, "7": 2},
    )  # fmt: skip
    assert ask.sampling == Sampling(
        temperature=0, top_k=0, top_p=0.5, min_p=0.1, seed=2**32 - 8, repeat_penalty=1.1,
        frequency_penalty=1, presence_penalty=-1, logit_bias=((7, 2.0), (50, -100.0)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}},
        {"response_format": {"type": "json_object", "schema": {"enum": [1]}}},
        {"response_format": {"type": "json_object"}},
        {"json_schema": {"type": "array"}},
        {"grammar": 'root ::= "x"'},
    ],
)
def test_what_the_answer_looks_like_becomes_a_grammar(fields: dict[str, Any]) -> None:
    for ask in (chat(**fields), completion(**fields)):
        assert ask.sampling.grammar.startswith("root ::= ")


def test_llama_servers_names_are_known() -> None:
    fields = {
        "typical_p": 0.9, "top_n_sigma": 1.5, "xtc_probability": 0.5, "xtc_threshold": 0.2,
        "dynatemp_range": 0.25, "dynatemp_exponent": 2.0, "min_keep": 2, "repeat_last_n": -1,
        "dry_multiplier": 0.8, "dry_base": 2.0, "dry_allowed_length": 3, "dry_penalty_last_n": 99,
        "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2, "ignore_eos": True,
    }  # fmt: skip
    sampling = chat(**fields, dry_sequence_breakers=["\n", "."]).sampling
    assert sampling == Sampling(**fields, dry_sequence_breakers=("\n", "."))  # type: ignore[arg-type]
    assert chat(samplers=["min_p", "top_k"]).sampling.samplers == ("min_p", "top_k")
    # Every field of a sampling can be asked for, but the one that comes of others.
    known = {field.name for field in dataclasses.fields(Sampling)} - {"grammar"}
    assert known <= set(SamplingFields.__struct_fields__)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(None, None), (-1, None), (5, 5), (2**32 - 1, 0), (2**70, 2**70 % (2**32 - 1))],
)
def test_seeds_fit_into_llama_cpp_and_never_mean_random(
    seed: int | None, expected: int | None
) -> None:
    assert chat(seed=seed).sampling.seed == expected


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_tokens": -1}, None),
        ({"max_tokens": None}, None),
    ],
)
def test_token_limits(fields: dict[str, Any], limit: int | None) -> None:
    assert chat(**fields).max_tokens == limit


def test_stops_may_be_one_or_four() -> None:
    assert chat(stop="a").stops == ("a",)
    assert chat(stop=["a", "b", "c", "d"]).stops == ("a", "b", "c", "d")
    assert chat(stop=[]).stops == ()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"logprobs": 1.5}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 0}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": False}}, "response_format"),
        ({"json_schema": {"not": {}, "type": 5}}, "json_schema"),
        ({"grammar": 'root ::= "x"', "json_schema": {"type": "object"}}, "grammar"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"grammar": 5}, "grammar"),
        ({"samplers": ["top_k", "magic"]}, "samplers"),
        ({"mirostat": 3}, "mirostat"),
        ({"typical_p": 1.5}, "typical_p"),
        ({"xtc_threshold": -0.1}, "xtc_threshold"),
        ({"repeat_last_n": -2}, "repeat_last_n"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": ["x"] * 17}, "dry_sequence_breakers"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": "x" * 1001}, "stop"),
        ({"stop": 1}, "stop"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "function", "content": "x"}]}, "messages[1]"),
        ({"messages": [USER, {"role": "tool"}]}, "messages[1].content"),
        ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages[0]"),
        ({"messages": [assistant("{")]}, "messages[0].tool_calls[0]"),
        ({"messages": [assistant("[1]")]}, "messages[0].tool_calls[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [TOOL], "json_schema": {"type": "object"}}, "tools"),
        ({"tools": [TOOL], "tool_choice": "f"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": named("g")}, "tool_choice"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error.http_status == 400
    assert error.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"logprobs": False, "top_logprobs": None, "tools": [], "tool_choice": "auto"},
        {"response_format": {"type": "text"}, "modalities": ["text"], "mirostat": 0},
        {"user": "u", "metadata": {"a": 1}, "store": False, "service_tier": "auto", "x": [1]},
    ],
)
def test_what_changes_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert chat(**fields).sampling == Sampling()


def test_text_parts_are_joined_and_other_fields_reach_the_template() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask = chat(
        messages=[
            {"role": "developer", "content": parts, "name": "n"},
            {"role": "assistant", "content": None},
        ],
        chat_template_kwargs={"thinking": True},
    )
    assert ask.messages == (
        {"role": "system", "content": "a\nb", "name": "n"},
        {"role": "assistant", "content": ""},
    )
    assert ask.variables == {"thinking": True}


def test_calls_and_their_results_reach_the_template_with_arguments_as_objects() -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": "42"}
    ask = chat(messages=[USER, assistant('{"x": [1]}'), result, assistant("")])
    function = {"name": "f", "arguments": {"x": [1]}}
    assert ask.messages[1] == {
        "role": "assistant", "content": "",
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }  # fmt: skip
    assert ask.messages[2] == result
    assert ask.messages[3]["tool_calls"][0]["function"]["arguments"] == {}


def test_which_tools_may_be_called() -> None:
    other = {"type": "function", "function": {"name": "g", "description": "d", "strict": True}}
    found = chat(tools=[TOOL, other]).offer
    assert (found.names, found.shown) == (("f", "g"), (TOOL, other))
    assert (found.must, found.several) == (False, True)
    assert chat(tools=[TOOL], tool_choice="none").offer == Offer() == chat(tools=[]).offer
    assert chat(tools=[TOOL], tool_choice="none", json_schema={"type": "object"}).sampling.grammar
    must = chat(tools=[TOOL, other], tool_choice="required", parallel_tool_calls=False).offer
    assert (len(must.tools), must.must, must.several) == (2, True, False)
    one = chat(tools=[TOOL, other], tool_choice=named("g")).offer
    assert (one.names, len(one.shown), one.must, one.several) == (("g",), 2, True, False)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("p", "p"), (["p"], "p"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2))],
)
def test_prompts(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).prompt == expected


@pytest.mark.parametrize("prompt", [[], ["a", "b"], [[1], [2]], [1, "a"], [-1], [2**31], 5, [[]]])
def test_prompts_that_are_refused(prompt: Any) -> None:
    with pytest.raises(ApiError) as caught:
        completion(prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"\xff", b'{"a":"\xff"}', b"[" * 100_000, b'{"a":"\\ud800 xxxx"}'],
)
def test_what_is_no_json_object(body: bytes) -> None:
    for parse in (parse_chat, parse_completion):
        with pytest.raises(ApiError) as caught:
            parse(body)
        assert caught.value.http_status == 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=3,
)
names = st.sampled_from(
    ["model", "messages", "prompt", "stop", "seed", "n", "logit_bias", "max_tokens", "top_k",
     "stream_options", "tools", "tool_choice", "temperature", "echo", "chat_template_kwargs",
     "response_format", "json_schema", "grammar", "logprobs", "top_logprobs", "mirostat"]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(fields=st.dictionaries(names, json_values, max_size=6))
def test_any_json_is_taken_or_refused(fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "messages": [USER], "prompt": "p", **fields}).encode()
    for parse in (parse_chat, parse_completion):
        try:
            ask = parse(body)
        except ApiError as error:
            assert error.http_status == 400
        else:
            assert ask.model
