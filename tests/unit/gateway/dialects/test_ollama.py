"""Ollama's chats and generations: what a replica is asked, and what becomes of its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.generation import SAMPLERS, Timings
from agent.engine.serve import openai
from agent.engine.serve.forms import ChatForm, Choice, CompletionForm, Form
from agent.engine.serve.schema import parse_chat, parse_completion
from agent.engine.serve.tools import Call
from gateway.dialects.names import resolve
from gateway.dialects.ollama import Chat, Generate
from gateway.dialects.port import Dialect, Refused, Translated

NOW = 1_700_000_000.25
AT = "2023-11-14T22:13:20.250000Z"
KNOWN = ("covey-mini", "other:latest", "third:7b")
HELLO = [{"role": "user", "content": "hello"}]
# Half a second for 8 tokens, a quarter for 2.
TIMINGS = {"timings": openai.timings(Timings(8, 0.5, 2, 0.25))}
USAGE = openai.usage(8, 2, 0)
COST = {
    "total_duration": 750_000_000, "load_duration": 0,
    "prompt_eval_count": 8, "prompt_eval_duration": 500_000_000,
    "eval_count": 2, "eval_duration": 250_000_000,
}  # fmt: skip
CALLS = [Call("call_a", "weather", '{"city": "Bonn"}'), Call("call_b", "now", "{}")]

Json = dict[str, Any]
chat = Chat(lambda: KNOWN)
generate = Generate(lambda: KNOWN)


def ask(dialect: Dialect, **fields: Any) -> Translated:
    return dialect.ask(json.dumps({"model": "covey-mini", **fields}).encode(), NOW)


def body(dialect: Dialect, **fields: Any) -> Json:
    return ask(dialect, **fields).body


def form_of(translated: Translated) -> Form:
    kind = ChatForm if translated.path == "/v1/chat/completions" else CompletionForm
    return kind("1", 1, "m", include_usage=translated.streamed, logprobs=False)


def streamed(
    translated: Translated, texts: Sequence[str], calls: Sequence[Call] = (), reason: Any = "stop",
    last: Json = TIMINGS, usage: Json | None = USAGE,
) -> Iterator[Json]:  # fmt: skip
    """Yield lines for the chunks of a head, through JSON as they come."""

    def chunks() -> Iterator[Json | None]:
        form = form_of(translated)
        yield form.begin(0)
        yield from (form.delta(0, text) for text in texts)
        for number, call in enumerate(calls):
            yield from form.called(0, number, call)
        yield form.end(0, reason, last)
        if usage:
            yield form.counted(usage)

    reader = translated.reader
    sent = [reader.event(msgspec.json.decode(msgspec.json.encode(c))) for c in chunks() if c]
    said = b"".join([*sent, reader.end()])
    assert said.endswith(b"\n")
    yield from map(json.loads, said.splitlines())


def whole(translated: Translated, *parts: str, calls: Sequence[Call] = ()) -> Json:
    choice = Choice(list(parts), list(calls), reason="tool_calls" if calls else "stop")
    answer = form_of(translated).whole([choice], {"usage": USAGE, **TIMINGS})
    found: Json = json.loads(translated.reader.whole(json.loads(json.dumps(answer))))
    return found


def test_a_chat_is_a_stream_unless_the_client_says_no() -> None:
    asked = ask(chat, messages=HELLO)
    assert asked[:4] == (
        {
            "model": "covey-mini", "messages": HELLO,
            "stream": True, "stream_options": {"include_usage": True},
        },
        "/v1/chat/completions", True, "application/x-ndjson",
    )  # fmt: skip
    assert list(streamed(asked, ["Hi", "", " there"])) == [
        {"model": "covey-mini", "created_at": AT, "done": False,
         "message": {"role": "assistant", "content": "Hi"}},
        {"model": "covey-mini", "created_at": AT, "done": False,
         "message": {"role": "assistant", "content": " there"}},
        {"model": "covey-mini", "created_at": AT, "done": True, "done_reason": "stop",
         "message": {"role": "assistant", "content": ""}, **COST},
    ]  # fmt: skip
    asked = ask(chat, messages=HELLO, stream=False)
    assert asked.body == {"model": "covey-mini", "messages": HELLO, "stream": False}
    assert not asked.streamed
    assert whole(asked, "Hi", " there") == {
        "model": "covey-mini", "created_at": AT, "done": True, "done_reason": "stop",
        "message": {"role": "assistant", "content": "Hi there"}, **COST,
    }  # fmt: skip


def test_a_prompt_is_a_chat_so_that_the_template_is_applied() -> None:
    asked = ask(generate, prompt="hello", system="Be short.", keep_alive="5m", unknown=1)
    assert asked.path == "/v1/chat/completions"
    assert asked.body["messages"] == [{"role": "system", "content": "Be short."}, *HELLO]
    lines = list(streamed(asked, ["Hi", "!"], reason="length"))
    assert [line["response"] for line in lines] == ["Hi", "!", ""]
    assert (lines[-1]["done"], lines[-1]["done_reason"]) == (True, "length")
    asked = ask(generate, prompt="hello", stream=False)
    assert asked.body["messages"] == HELLO
    assert whole(asked, "Hi")["response"] == "Hi"


def test_a_raw_prompt_is_a_completion() -> None:
    asked = ask(generate, prompt="<|user|>hello", raw=True)
    assert asked.path == "/v1/completions"
    assert asked.body["prompt"] == "<|user|>hello"
    assert asked.body["max_tokens"] == -1, "OpenAI's default of completions is 16"
    assert [line["response"] for line in streamed(asked, ["Hi", "!"])] == ["Hi", "!", ""]
    assert body(generate, prompt="a", raw=True, options={"num_predict": 3})["max_tokens"] == 3
    asked = ask(generate, prompt="def f(", suffix="return 1", stream=False)
    assert (asked.path, asked.body["suffix"]) == ("/v1/completions", "return 1")
    assert whole(asked, "x):")["response"] == "x):"


@pytest.mark.parametrize(
    ("dialect", "fields", "said"),
    [
        (chat, {"messages": []}, {"message": {"role": "assistant", "content": ""}}),
        (chat, {"stream": True}, {"message": {"role": "assistant", "content": ""}}),
        (generate, {"keep_alive": -1}, {"response": ""}),
        (generate, {"prompt": "", "raw": True}, {"response": ""}),
    ],
)  # fmt: skip
def test_nothing_asked_means_is_the_model_there(dialect: Any, fields: Json, said: Json) -> None:
    asked = ask(dialect, **fields)
    assert (asked.streamed, asked.body["max_tokens"]) == (False, 1)
    parse_chat(msgspec.json.encode(asked.body))
    answer = {"choices": [{"message": {"content": "what it says"}}]}
    assert json.loads(asked.reader.whole(answer)) == {
        "model": "covey-mini", "created_at": AT, "done": True, "done_reason": "load", **said
    }  # fmt: skip


@given(st.lists(st.text()), st.sampled_from([chat, generate]))
def test_the_texts_of_the_lines_add_up_to_the_whole_answer(texts: list[str], dialect: Any) -> None:
    fields: Json = {"messages": HELLO} if dialect is chat else {"prompt": "hello"}
    lines = list(streamed(ask(dialect, **fields), texts))
    one = whole(ask(dialect, **fields, stream=False), *texts)
    for line in (*lines, one):
        line.setdefault("response", line.get("message", {}).get("content"))
    assert "".join(line["response"] for line in lines) == one["response"] == "".join(texts)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert all(line["response"] for line in lines[:-1])


OPTIONS: Any = {
    "temperature": st.floats(0, 3),
    "top_k": st.integers(0, 1000),
    "top_p": st.floats(0, 1),
    "min_p": st.floats(0, 1),
    "typical_p": st.floats(0, 1),
    "seed": st.integers(0, 2**31),
    "repeat_last_n": st.integers(-1, 512),
    "repeat_penalty": st.floats(0.1, 3),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "mirostat": st.integers(0, 2),
    "mirostat_tau": st.floats(0, 9),
    "mirostat_eta": st.floats(0, 1),
    "dry_multiplier": st.floats(0, 2),
    "samplers": st.lists(st.sampled_from(SAMPLERS), max_size=9),
}


@given(
    st.fixed_dictionaries({}, optional=OPTIONS),
    st.none() | st.integers(-2, 5000),
    st.none() | st.lists(st.text(max_size=5), max_size=4),
    st.booleans(),
)
def test_options_arrive_at_the_sampler(
    options: Json, limit: int | None, stops: list[str] | None, raw: bool
) -> None:
    loading = {"num_ctx": 4096, "num_gpu": 99, "use_mmap": True, "nobody_knows": [1]}
    given = {**options, **loading, "num_predict": limit, "stop": stops, "num_keep": None}
    if raw:
        asked = parse_completion(
            msgspec.json.encode(body(generate, prompt="a", raw=True, options=given))
        )
    else:
        asked = parse_chat(msgspec.json.encode(body(chat, messages=HELLO, options=given)))
    for name, value in options.items():
        kept = tuple(value) if isinstance(value, list) else value
        assert getattr(asked.sampling, name) == kept, name
    assert asked.max_tokens == (limit if limit and limit > 0 else None)
    assert asked.stops == tuple(stop for stop in stops or [] if stop)


def test_one_stop_may_be_a_text_and_a_limit_a_round_float() -> None:
    found = body(chat, messages=HELLO, options={"stop": "END", "num_predict": 7.0})
    assert (found["stop"], found["max_tokens"]) == (["END"], 7)


SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.mark.parametrize("fields", [{"prompt": "hello"}, {"prompt": "hello", "raw": True}])
def test_formats_are_kept_by_a_grammar(fields: Json) -> None:
    parse = parse_completion if "raw" in fields else parse_chat
    for format_, has in (("", ""), ("json", "root"), (SCHEMA, "age")):
        asked = parse(msgspec.json.encode(body(generate, **fields, format=format_)))
        assert bool(asked.sampling.grammar) == bool(has)
        assert has in asked.sampling.grammar


def test_thinking_is_asked_of_the_template_and_told_apart() -> None:
    assert "chat_template_kwargs" not in body(chat, messages=HELLO)
    for think, variables in (
        (False, {"enable_thinking": False}),
        ("high", {"enable_thinking": True, "reasoning_effort": "high"}),
    ):
        assert body(chat, messages=HELLO, think=think)["chat_template_kwargs"] == variables
    for name in ("reasoning_content", "reasoning"):
        asked = ask(generate, prompt="hello", think=True)
        chunk = {"choices": [{"delta": {name: "Hm."}}]}
        assert json.loads(asked.reader.event(chunk))["thinking"] == "Hm."
        asked = ask(chat, messages=HELLO, stream=False)
        answer = {"choices": [{"message": {name: "Hm.", "content": "Hi"}}]}
        message = json.loads(asked.reader.whole(answer))["message"]
        assert message == {"role": "assistant", "content": "Hi", "thinking": "Hm."}
    said = {"role": "assistant", "content": "Hi", "thinking": "Hm."}
    sent = body(chat, messages=[said])["messages"]
    assert sent == [{"role": "assistant", "content": "Hi", "reasoning_content": "Hm."}]


@pytest.mark.parametrize("stream", [True, False])
def test_calls_have_objects_as_arguments_and_come_whole(stream: bool) -> None:
    asked = ask(chat, messages=HELLO, stream=stream)
    if stream:
        first, called, last = streamed(asked, ["Wait."], CALLS, reason="tool_calls")
        assert (first["message"]["content"], called["message"]["content"]) == ("Wait.", "")
        assert (called["done"], last["done"], last["done_reason"]) == (False, True, "stop")
        assert "tool_calls" not in last["message"]
    else:
        called = whole(asked, "Wait.", calls=CALLS)
        assert (called["done"], called["done_reason"]) == (True, "stop")
    assert called["message"]["tool_calls"] == [
        {"id": "call_a",
         "function": {"index": 0, "name": "weather", "arguments": {"city": "Bonn"}}},
        {"id": "call_b", "function": {"index": 1, "name": "now", "arguments": {}}},
    ]  # fmt: skip


def test_calls_that_nobody_ended_are_in_the_last_line() -> None:
    reader = ask(chat, messages=HELLO).reader
    for call in (
        {"index": 0, "function": {"name": "now", "arguments": "[1"}},
        {"index": 0, "function": {"arguments": ", 2]"}},
    ):
        assert reader.event({"choices": [{"delta": {"tool_calls": [call]}}]}) == b""
    last = json.loads(reader.end())
    # Models write what they like; a client sees it rather than nothing.
    [call] = last["message"]["tool_calls"]
    assert call == {"function": {"index": 0, "name": "now", "arguments": {"arguments": "[1, 2]"}}}
    assert last["done"] and "eval_count" not in last and "total_duration" not in last


def test_counts_may_come_at_any_time() -> None:
    reader = ask(generate, prompt="hello").reader
    reader.event({"choices": [], "usage": USAGE, **TIMINGS})
    reader.event({"choices": [{"delta": {}}], "usage": None})
    assert COST.items() <= json.loads(reader.end()).items()


def test_calls_and_results_of_a_conversation_get_ids() -> None:
    tool = {"function": {"name": "weather", "parameters": {"type": "object"}}}
    calls = [{"function": {"name": name, "arguments": {"n": 1}}} for name in ("a", "b", "a")]
    messages = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "for b", "tool_name": "b"},
        {"role": "tool", "content": "for a"},
        {"role": "tool", "content": "for a too", "tool_name": "a"},
        {"role": "assistant", "tool_calls": [{"id": "own", "function": {"name": "c"}}]},
        {"role": "tool", "content": "for c", "tool_call_id": "own"},
        {"role": "tool", "content": "for nobody"},
    ]
    found = body(chat, messages=messages, tools=[tool])
    assert found["tools"] == [{"type": "function", **tool}]
    sent = found["messages"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["call_0", "call_1", "call_2"]
    assert sent[1]["tool_calls"][0]["function"] == {"name": "a", "arguments": '{"n":1}'}
    answered = [m["tool_call_id"] for m in sent if m["role"] == "tool"]
    assert answered == ["call_1", "call_0", "call_2", "own", "call_3"]
    parse_chat(msgspec.json.encode(found))


def test_logprobs() -> None:
    found = body(chat, messages=HELLO, logprobs=True, top_logprobs=2)
    assert (found["logprobs"], found["top_logprobs"]) == (True, 2)
    assert "logprobs" not in body(chat, messages=HELLO, top_logprobs=2)
    told = [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}]
    chunk = {"choices": [{"delta": {"content": "Hi"}, "logprobs": {"content": told}}]}
    for dialect, fields in ((chat, {"messages": HELLO}), (generate, {"prompt": "a"})):
        reader = ask(dialect, **fields, logprobs=True).reader
        assert json.loads(reader.event(chunk))["logprobs"] == told


def test_a_name_that_is_there_is_that_one() -> None:
    for asked in ("a", "a:latest"):
        assert resolve(asked, {"a", "a:latest"}) == asked


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("covey-mini", "covey-mini"),
        ("covey-mini:latest", "covey-mini"),
        ("other", "other:latest"),
        ("other:latest", "other:latest"),
        ("third:7b", "third:7b"),
        ("third", "third"),
        ("nobody:latest", "nobody:latest"),
    ],
)
def test_a_name_may_have_latest_or_not(asked: str, meant: str) -> None:
    assert resolve(asked, KNOWN) == meant
    for dialect in (chat, generate):
        found = ask(dialect, model=asked, messages=HELLO, prompt="hello")
        assert found.body["model"] == meant
        assert next(streamed(found, ["Hi"]))["model"] == asked, "as the client calls it"


def test_images_are_shown_to_models_that_see() -> None:
    png = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K"}}
    jpeg = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ"}}
    asked = {"role": "user", "content": "What?", "images": ["iVBORw0K", "/9j/4AAQ"]}
    found = ask(chat, messages=[*HELLO, asked])
    assert found.shown == (f"messages[{len(HELLO)}].images[0]", "image")
    content = found.body["messages"][-1]["content"]
    assert content == [{"type": "text", "text": "What?"}, png, jpeg]
    found = ask(generate, prompt="What?", images=["iVBORw0K"])
    assert found.shown == ("images[0]", "image")
    assert found.body["messages"][-1]["content"] == [{"type": "text", "text": "What?"}, png]
    found = ask(generate, images=["iVBORw0K"], stream=False)
    assert found.body["messages"] == [{"role": "user", "content": [png]}]
    assert ask(chat, messages=HELLO).shown is ask(generate, prompt="a").shown is None


@pytest.mark.parametrize(
    ("dialect", "fields", "said"),
    [
        (chat, {"model": ""}, "model is required"),
        (chat, {"messages": [{"role": "user", "images": ["AAAA"]}]}, "is no PNG"),
        (generate, {"prompt": "a", "images": ["iVBOR", 5]}, "is no PNG"),
        (generate, {"prompt": "a", "images": ["iVBOR"], "raw": True}, "`images`"),
        (generate, {"prompt": "a", "template": "{{ .Prompt }}"}, "`raw`"),
        (generate, {"prompt": "a", "context": [1, 2]}, "/api/chat"),
        (generate, {"prompt": "a", "raw": True, "system": "b"}, "`system`"),
        (generate, {"prompt": "a", "suffix": "b", "logprobs": True}, "`logprobs`"),
        (chat, {"messages": HELLO, "format": "yaml"}, "invalid format"),
        (chat, {"messages": HELLO, "format": 1}, "invalid format"),
        (chat, {"messages": HELLO, "options": {"num_predict": "7"}}, "num_predict"),
        (chat, {"messages": HELLO, "options": {"num_predict": 1.5}}, "num_predict"),
        (chat, {"messages": HELLO, "options": {"num_predict": True}}, "num_predict"),
        (chat, {"messages": HELLO, "options": {"stop": [1]}}, "stop"),
        (chat, {"messages": HELLO, "options": {"stop": {"a": 1}}}, "stop"),
        (chat, {"messages": "hello"}, "messages"),
        (chat, {"messages": [{"content": "a"}]}, "role"),
        (chat, {"messages": HELLO, "stream": "yes"}, "stream"),
        (generate, {"prompt": ["a"]}, "prompt"),
    ],
)
def test_what_makes_no_sense_is_refused(dialect: Any, fields: Json, said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        ask(dialect, **fields)
    assert caught.value.status == 400
    assert json.loads(dialect.error(400, caught.value.message, "")) == {
        "error": caught.value.message
    }


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(msgspec.json.encode))
def test_any_body_is_read_or_refused(raw: bytes) -> None:
    for dialect in (chat, generate):
        with pytest.raises(Refused):
            dialect.ask(raw, NOW)


def test_a_nest_without_an_end_is_refused() -> None:
    with pytest.raises(Refused):
        chat.ask(b'{"model": "m", "options": ' + b"[" * 100_000, NOW)


def test_a_stream_that_breaks_ends_with_its_error() -> None:
    reader = ask(chat, messages=HELLO).reader
    assert reader.broken("stage 1 is gone", "server_error") == b'{"error":"stage 1 is gone"}\n'


@pytest.mark.parametrize("answer", [{}, {"choices": 5}, {"choices": [{"message": 1}]}])
def test_what_is_no_answer_is_an_error(answer: Json) -> None:
    with pytest.raises(msgspec.ValidationError):
        ask(chat, messages=HELLO, stream=False).reader.whole(answer)
    with pytest.raises(msgspec.ValidationError):
        ask(chat, messages=HELLO).reader.event(answer)
    with pytest.raises(IndexError):
        ask(chat, messages=HELLO, stream=False).reader.whole({"choices": []})
