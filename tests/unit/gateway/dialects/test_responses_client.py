"""The Responses API as OpenAI's own client uses it; the client checks every answer's types."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pydantic
import pytest
from aiohttp import web

LOOK: Any = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


class Place(pydantic.BaseModel):
    city: str


@pytest.fixture
async def client() -> AsyncIterator[Callable[[str], openai.AsyncOpenAI]]:
    clients: list[openai.AsyncOpenAI] = []

    def make(url: str) -> openai.AsyncOpenAI:
        clients.append(
            openai.AsyncOpenAI(
                base_url=f"{url}/v1", api_key="none", max_retries=0,
                _strict_response_validation=True,
            )
        )  # fmt: skip
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
            if asked[-1].get("stream"):
                return web.Response(body=script.stream(), content_type="text/event-stream")
            return web.json_response(script.whole())

        return await gateway(head("a", await upstream(handler))), asked

    return start


async def test_a_real_head(serve: Any, scripted: Any, gateway: Any, head: Any, client: Any) -> None:
    model = scripted([b"Hi", b" there"])
    url = await gateway(head("a", await serve(model), "covey-mini"))
    openai_client: openai.AsyncOpenAI = client(url)
    whole = await openai_client.responses.create(model="covey-mini", input="hello")
    assert (whole.output_text, whole.status, whole.model) == ("Hi there", "completed", "covey-mini")
    assert whole.usage is not None
    assert whole.usage.output_tokens == 2
    async with openai_client.responses.stream(
        model="covey-mini", input="hello", instructions="Be brief"
    ) as stream:
        deltas = [event.delta async for event in stream if event.type.endswith("text.delta")]
        final = await stream.get_final_response()
    assert (deltas, final.output_text) == (["Hi", " there"], "Hi there")
    assert final.usage is not None
    assert final.usage.total_tokens == final.usage.input_tokens + 2
    cut = await openai_client.responses.create(
        model="covey-mini", input="hello", max_output_tokens=1
    )
    assert (cut.status, cut.output_text) == ("incomplete", "Hi")
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


async def test_tools(answers: Any, client: Any, script: Any) -> None:
    said = script(("I look",), (("look", ('{"city"', ':"X"}')),), "tool_calls")
    url, asked = await answers(said)
    openai_client: openai.AsyncOpenAI = client(url)
    whole = await openai_client.responses.create(model="m", input="hello", tools=[LOOK])
    message, call = whole.output
    assert (message.type, call.type) == ("message", "function_call")
    assert (call.name, json.loads(call.arguments)) == ("look", {"city": "X"})
    async with openai_client.responses.stream(model="m", input="hello", tools=[LOOK]) as stream:
        deltas = [e.delta async for e in stream if e.type.endswith("arguments.delta")]
        final = await stream.get_final_response()
    assert deltas == ['{"city"', ':"X"}']
    assert final.output[1].arguments == call.arguments
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    again: Any = [{"role": "user", "content": "hello"}, *whole.output, output]
    await openai_client.responses.create(model="m", input=again)
    assert [message["role"] for message in asked[-1]["messages"]] == ["user", "assistant", "tool"]


async def test_structured_answers(answers: Any, client: Any, script: Any) -> None:
    url, asked = await answers(script(('{"city":', '"X"}')))
    parsed = await client(url).responses.parse(model="m", input="hello", text_format=Place)
    assert parsed.output_parsed == Place(city="X")
    wanted = asked[-1]["response_format"]["json_schema"]
    assert (wanted["name"], wanted["schema"]["required"]) == ("Place", ["city"])


async def test_errors(answers: Any, client: Any, script: Any) -> None:
    url, _ = await answers(script(("Hi",)))
    responses = client(url).responses
    with pytest.raises(openai.NotFoundError, match="there is m") as missing:
        await responses.create(model="other", input="hello")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="nothing is kept here"):
        await responses.create(model="m", input="hello", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError, match="Responses are not kept here"):
        await responses.retrieve("resp_1")
