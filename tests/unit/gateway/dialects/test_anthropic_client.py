"""The Messages API as Anthropic's own client uses it; the client checks every answer's types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import pytest
from aiohttp import web

HELLO: Any = [{"role": "user", "content": "hello"}]
LOOK: Any = {
    "name": "look",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
async def client() -> AsyncIterator[Callable[[str], anthropic.AsyncAnthropic]]:
    clients: list[anthropic.AsyncAnthropic] = []

    def make(url: str) -> anthropic.AsyncAnthropic:
        clients.append(
            anthropic.AsyncAnthropic(
                base_url=url, api_key="none", max_retries=0, _strict_response_validation=True
            )
        )
        return clients[-1]

    yield make
    for one in clients:
        await one.close()


@pytest.fixture
def answers(upstream: Any, gateway: Any, head: Any) -> Callable[..., Any]:
    """Return the URL of a gateway whose replica says a script, and what the replica was asked."""

    async def start(script: Any) -> tuple[str, list[dict[str, Any]]]:
        asked: list[dict[str, Any]] = []

        async def handler(request: web.Request) -> web.Response:
            asked.append(await request.json())
            if request.path == "/tokenize":
                return web.json_response({"tokens": [1, 2, 3]})
            if asked[-1].get("stream"):
                return web.Response(body=script.stream(), content_type="text/event-stream")
            return web.json_response(script.whole())

        return await gateway(head("a", await upstream(handler))), asked

    return start


async def test_a_real_head(serve: Any, scripted: Any, gateway: Any, head: Any, client: Any) -> None:
    model = scripted([b"Hi", b" there"])
    url = await gateway(head("a", await serve(model), "covey-mini"))
    messages = client(url).messages
    asked = {"model": "covey-mini", "max_tokens": 9, "messages": HELLO}
    whole = await messages.create(**asked, system="Be brief")
    assert [block.text for block in whole.content] == ["Hi there"]
    assert (whole.stop_reason, whole.model, whole.usage.output_tokens) == (
        "end_turn", "covey-mini", 2,
    )  # fmt: skip
    async with messages.stream(**asked) as stream:
        texts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert texts == ["Hi", " there"]
    assert (final.content[0].text, final.stop_reason) == ("Hi there", "end_turn")
    usage = final.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len(model.requests[-1].prompt)
    assert usage.output_tokens == 2
    cut = await messages.create(**{**asked, "max_tokens": 1})
    assert (cut.stop_reason, cut.content[0].text) == ("max_tokens", "Hi")


async def test_a_real_head_tells_the_stop_sequence(
    serve: Any, scripted: Any, gateway: Any, head: Any, client: Any
) -> None:
    url = await gateway(head("a", await serve(scripted([b"Hi", b" the", b"re"])), "covey-mini"))
    messages = client(url).messages
    asked = {"model": "covey-mini", "max_tokens": 9, "messages": HELLO}
    for stops, told in (
        (["x", " there"], ("stop_sequence", " there", "Hi")),
        (["x"], ("end_turn", None, "Hi there")),
    ):
        whole = await messages.create(**asked, stop_sequences=stops)
        async with messages.stream(**asked, stop_sequences=stops) as stream:
            streamed = await stream.get_final_message()
        for message in (whole, streamed):
            text = message.content[0].text
            assert (message.stop_reason, message.stop_sequence, text) == told


async def test_a_real_head_calls_a_tool(
    serve: Any, scripted: Any, gateway: Any, head: Any, client: Any
) -> None:
    call = b'<tool_call>{"name": "look", "arguments": {"city": "X"}}</tool_call>'
    model = scripted([b"I look. ", *[call[at : at + 5] for at in range(0, len(call), 5)]])
    model.context = 4096
    model.chat_template = (
        "{% for tool in tools or [] %}<tool_call>{{ tool | tojson }}{% endfor %}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ m.tool_calls | tojson if"
        " m.tool_calls }}{% endfor %}"
    )
    messages = client(await gateway(head("a", await serve(model), "covey-mini"))).messages
    ask = {"model": "covey-mini", "max_tokens": 99, "tools": [LOOK]}
    whole = await messages.create(**ask, messages=HELLO)
    async with messages.stream(**ask, messages=HELLO) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        text, use = message.content
        assert (text.text, use.name, use.input) == ("I look. ", "look", {"city": "X"})
        assert message.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
    again = [
        *HELLO,
        {"role": "assistant", "content": streamed.content},
        {"role": "user", "content": [result]},
    ]
    await messages.create(**ask, messages=again)
    prompt = model.detokenize(model.requests[-1].prompt).decode()
    assert '"arguments": {"city": "X"}' in prompt
    assert prompt.endswith("<|tool|>rain")


async def test_tools(answers: Any, client: Any, script: Any) -> None:
    said = script(("I look",), (("look", ('{"city"', ':"X"}')),), "tool_calls")
    url, asked = await answers(said)
    messages = client(url).messages
    ask = {"model": "m", "max_tokens": 9, "tools": [LOOK]}
    whole = await messages.create(**ask, messages=HELLO, tool_choice={"type": "any"})
    text, use = whole.content
    assert (whole.stop_reason, text.type, use.type) == ("tool_use", "text", "tool_use")
    assert (use.name, use.input) == ("look", {"city": "X"})
    assert asked[-1]["tool_choice"] == "required"
    async with messages.stream(**ask, messages=HELLO) as stream:
        final = await stream.get_final_message()
    assert final.content[1].input == {"city": "X"}
    assert final.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
    again = [
        *HELLO,
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": [result]},
    ]
    await messages.create(**ask, messages=again)
    assert [message["role"] for message in asked[-1]["messages"]] == ["user", "assistant", "tool"]


async def test_counting(answers: Any, client: Any, script: Any) -> None:
    url, asked = await answers(script())
    count = await client(url).messages.count_tokens(model="m", messages=HELLO, tools=[LOOK])
    assert count.input_tokens == 3
    assert asked[-1]["messages"] == HELLO


async def test_a_server_that_counts_texts_only_is_passed_over_or_says_so(
    upstream: Any, gateway: Any, head: Any, client: Any
) -> None:
    def counting(tokens: list[int]) -> Any:
        async def handler(request: web.Request) -> web.Response:
            return web.json_response({"tokens": tokens})

        return handler

    texts_only = head("a", await upstream(counting([])))  # as llama-server does
    ask: Any = {"model": "m", "messages": HELLO}
    with pytest.raises(anthropic.APIStatusError, match="cannot count the tokens of") as error:
        await client(await gateway(texts_only)).messages.count_tokens(**ask)
    assert error.value.status_code == 501
    assert error.value.response.headers["x-covey-replica"] == "a"
    able = head("b", await upstream(counting([1, 2])))
    messages = client(await gateway(texts_only, able)).messages
    for _ in range(8):
        assert (await messages.count_tokens(**ask)).input_tokens == 2


async def test_errors(answers: Any, client: Any, script: Any) -> None:
    url, _ = await answers(script(("Hi",)))
    messages = client(url).messages
    with pytest.raises(anthropic.NotFoundError, match="there is m"):
        await messages.create(model="other", max_tokens=9, messages=HELLO)
    image = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    shown: Any = [{"role": "user", "content": [{"type": "image", "source": image}]}]
    with pytest.raises(anthropic.BadRequestError, match="reads text only here"):
        await messages.create(model="m", max_tokens=9, messages=shown)


async def test_a_stream_that_fails(
    upstream: Any, gateway: Any, head: Any, client: Any, script: Any
) -> None:
    said = script(("Hi",)).stream()
    error = b'data: {"error":{"message":"The ring broke","type":"server_error"}}\n\n'

    async def handler(_: web.Request) -> web.Response:
        body = said[: said.index(b"data: ", 5)] + error
        return web.Response(body=body, content_type="text/event-stream")

    url = await gateway(head("a", await upstream(handler)))
    with pytest.raises(anthropic.APIStatusError, match="The ring broke"):
        async with client(url).messages.stream(model="m", max_tokens=9, messages=HELLO) as stream:
            await stream.until_done()
