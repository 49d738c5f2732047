"""The head's HTTP with the engine behind it, through the official client: what clients ask for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import engine_rings as rings
import numpy as np
import openai
import pytest
from aiohttp import web

from agent.engine.head import Head, HeadLimits
from agent.engine.llama import Weights
from agent.engine.serve.app import make_app

pytestmark = pytest.mark.slow

# The form of Qwen's and Hermes' templates, in short.
TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}{{ '\\n' }}{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{{ '\\n' }}{% endfor %}assistant:"
)
HELLO: Any = [{"role": "user", "content": "the ring of stages"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["unit", "days"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "forecast", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]


@pytest.fixture(params=[(), (5, 9)], ids=["whole", "ring"])
async def client(
    models: Callable[..., Path], tmp_path: Path, request: Any
) -> AsyncIterator[openai.AsyncOpenAI]:
    weights = Weights(models())
    with rings.pipeline(models(), tmp_path, request.param) as pipeline:
        limits = HeadLimits(rings.N_CTX, rings.N_BATCH, rings.SLOTS, rings.SEQUENCES)
        head = Head("tiny", weights, limits)
        head.chat_template = TEMPLATE
        head.start(pipeline)
        runner = web.AppRunner(make_app(head), access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as made:
            yield made
        await runner.cleanup()
        await head.stop()
    weights.close()


def ask(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HELLO, "max_tokens": 200, "seed": 1, **fields}


async def test_a_json_schema_is_kept(client: openai.AsyncOpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA, "strict": True}}
    for temperature in (0.0, 2.0):
        answer = await client.chat.completions.create(
            **ask(response_format=wanted, temperature=temperature, n=3)
        )
        for choice in answer.choices:
            found = json.loads(choice.message.content)
            assert found["unit"] in ("C", "F") and 1 <= found["days"] <= 14
            assert choice.finish_reason == "stop"
    text = await client.completions.create(
        model="tiny", prompt="x", max_tokens=30, extra_body={"grammar": 'root ::= "w" [0-9]{2}'}
    )
    assert text.choices[0].text[0] == "w" and text.choices[0].text[1:].isdecimal()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"grammar": "root ::= what"}, "no rule what"),
        ({"grammar": 'root ::= root "x"'}, "left-recursive"),
        ({"json_schema": {"type": "string", "pattern": "a"}}, "`pattern` is not supported"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ],
)
async def test_what_cannot_be_kept_is_a_bad_request_and_the_engine_goes_on(
    client: openai.AsyncOpenAI, extra: Any, said: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=said):
            await client.chat.completions.create(**ask(extra_body=extra, stream=stream))
    assert (await client.chat.completions.create(**ask(max_tokens=3))).usage.completion_tokens <= 3


async def test_choices_share_their_prompt_and_follow_their_seeds(
    client: openai.AsyncOpenAI,
) -> None:
    fields = ask(n=3, temperature=2.0, max_tokens=12, logit_bias={"2": -100})
    first = await client.chat.completions.create(**fields)
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3
    again = await client.chat.completions.create(**fields)
    assert [choice.message.content for choice in again.choices] == texts
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    assert first.usage.completion_tokens == 36
    assert {choice.finish_reason for choice in first.choices} == {"length"}


async def test_logprobs_are_of_the_tokens_that_came(client: openai.AsyncOpenAI) -> None:
    fields = ask(temperature=0, max_tokens=8, logprobs=True, top_logprobs=3)
    whole = (await client.chat.completions.create(**fields)).choices[0]
    entries = whole.logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode(errors="ignore") == (
        whole.message.content.replace("\ufffd", "")
    )
    for entry in entries:
        assert entry.logprob == entry.top_logprobs[0].logprob
        assert sum(np.exp(other.logprob) for other in entry.top_logprobs) <= 1.0
    chunks = [c async for c in await client.chat.completions.create(**fields, stream=True)]
    told = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [entry.bytes for entry in told] == [entry.bytes for entry in entries]
    # Now most of the prompt is in the caches, so the rest goes through in a smaller batch, and f32
    # rounds elsewhere: 1e-4 on one CPU of two.
    assert [e.logprob for e in told] == pytest.approx([e.logprob for e in entries], abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_that_has_to_be_called_is(client: openai.AsyncOpenAI, stream: bool) -> None:
    choice: Any = {"type": "function", "function": {"name": "forecast"}}
    fields = ask(tools=TOOLS, tool_choice=choice, temperature=1.5)
    if stream:
        name, arguments, reason = "", "", None
        async for chunk in await client.chat.completions.create(**fields, stream=True):
            delta = chunk.choices[0].delta
            assert not delta.content
            for call in delta.tool_calls or []:
                assert call.index == 0
                name += call.function.name or ""
                arguments += call.function.arguments or ""
            reason = chunk.choices[0].finish_reason or reason
    else:
        told = (await client.chat.completions.create(**fields)).choices[0]
        [call] = told.message.tool_calls
        assert call.id.startswith("call_") and told.message.content is None
        name, arguments = call.function.name, call.function.arguments
        reason = told.finish_reason
    assert (name, reason) == ("forecast", "tool_calls")
    found = json.loads(arguments)
    assert found["unit"] in ("C", "F") and 1 <= found["days"] <= 14
    one = ask(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, temperature=1.5)
    [call] = (await client.chat.completions.create(**one)).choices[0].message.tool_calls
    assert call.function.name in ("forecast", "now")


async def test_a_call_and_its_result_go_back_to_the_model(client: openai.AsyncOpenAI) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages: Any = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "noon"},
    ]
    answer = await client.chat.completions.create(
        **ask(messages=messages, tools=TOOLS, max_tokens=4, tool_choice="none")
    )
    shown = (
        f"user: {HELLO[0]['content']}\nassistant: "
        '<tool_call>{"name": "now", "arguments": {}}</tool_call>\ntool: noon\nassistant:'
    )
    text = await client.completions.create(model="tiny", prompt=shown, max_tokens=1)
    assert answer.usage.prompt_tokens == text.usage.prompt_tokens


async def test_a_chat_is_counted_as_it_is_asked(client: openai.AsyncOpenAI) -> None:
    fields = {"messages": HELLO, "tools": TOOLS}
    answer = await client.chat.completions.create(**ask(**fields, max_tokens=1))
    url = str(client.base_url.copy_with(path="/"))
    async with aiohttp.ClientSession(url) as session:

        async def post(path: str, body: Any) -> Any:
            async with session.post(path, json=body) as response:
                return await response.json()

        tokens = (await post("/tokenize", fields))["tokens"]
        assert len(tokens) == answer.usage.prompt_tokens
        assert "forecast" in (await post("/detokenize", {"tokens": tokens}))["content"]
        tokens = (await post("/tokenize", {"content": "the ring </s>"}))["tokens"]
        assert (tokens[0] != 1, tokens[-1]) == (True, 2)
        pieces = (await post("/tokenize", {"content": "ü</s>", "with_pieces": True}))["tokens"]
        assert pieces[-1] == {"id": 2, "piece": "</s>"}
        assert (await post("/detokenize", {"tokens": tokens}))["content"].endswith("ring </s>")
