"""The official client of Ollama before the dialects, and a head's real server behind them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import aiohttp
import httpx
import msgspec
import numpy as np
import ollama
import pytest

from agent.engine.serve import vectors
from gateway.dialects import ollama_models
from gateway.dialects.ollama import Chat, Generate
from gateway.dialects.ollama_embed import Embed, Embeddings
from gateway.dialects.port import Dialect, Refused, Translated
from gateway.routing import Replica, Router

NOW = 1_700_000_000.0
KNOWN = ("covey-mini",)
DIALECTS: dict[str, Dialect] = {
    "/api/chat": Chat(lambda: KNOWN),
    "/api/generate": Generate(lambda: KNOWN),
    "/api/embed": Embed(lambda: KNOWN),
    "/api/embeddings": Embeddings(lambda: KNOWN),
}
HELLO: Any = [{"role": "user", "content": "hello"}]
KNOWS_TOOLS = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}"
)


async def from_head(url: str, asked: Translated) -> tuple[int, bytes]:
    """Return what a head answers, streamed or not, through the reader."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + asked.path, json=asked.body) as answer,
    ):
        body = await answer.read()
        if answer.status != 200:
            return answer.status, body
        if not asked.streamed:
            return 200, asked.reader.whole(json.loads(body))
        sent = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
        assert sent.pop() == b"[DONE]"
        said = [asked.reader.event(json.loads(chunk)) for chunk in sent]
        return 200, b"".join([*said, asked.reader.end()])


def embedded(asked: Translated) -> bytes:
    parsed = vectors.parse_embedding(msgspec.json.encode(asked.body), width=2)
    made = np.array([[1, len(text)] for text in parsed.inputs], np.float32)
    return asked.reader.whole(vectors.embeddings("m", made, 7, as_base64=parsed.as_base64))


def listed(path: str, body: bytes) -> bytes:
    router = Router("round_robin", Random(1))
    router.update("mesh", [Replica("den", "http://10.0.0.1:1", "mesh", KNOWN, 256)], 0.0)
    entries = router.models(1.0)
    match path:
        case "/api/tags":
            return ollama_models.tags(entries, NOW)
        case "/api/ps":
            return ollama_models.running(entries)
        case "/api/show":
            return ollama_models.show(body, entries, NOW)
    raise AssertionError(path)


def before(url: str) -> Callable[[httpx.Request], Awaitable[httpx.Response]]:
    """Return what stands for the gateway before the head at `url`."""

    async def handle(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        dialect = DIALECTS.get(path, DIALECTS["/api/chat"])
        try:
            if path not in DIALECTS:
                return httpx.Response(200, content=listed(path, request.content))
            asked = dialect.ask(request.content, NOW)
        except Refused as error:
            content = dialect.error(error.status, error.message, "invalid_request_error")
            return httpx.Response(error.status, content=content)
        if asked.path == "/v1/embeddings":
            return httpx.Response(200, content=embedded(asked))
        status, body = await from_head(url, asked)
        if status != 200:
            told = json.loads(body)["error"]
            body = dialect.error(status, told["message"], told["type"])
        return httpx.Response(status, content=body)

    return handle


@pytest.fixture
def model(scripted: Any) -> Any:
    made = scripted([b"Hi", b" there"])
    made.context = 4096
    made.chat_template = KNOWS_TOOLS
    return made


@pytest.fixture
async def client(serve: Any, model: Any) -> AsyncIterator[ollama.AsyncClient]:
    transport = httpx.MockTransport(before(await serve(model)))
    made = ollama.AsyncClient("http://ollama", transport=transport)
    yield made
    await made._client.aclose()


async def test_chat(client: ollama.AsyncClient, model: Any) -> None:
    answer = await client.chat("covey-mini:latest", HELLO, options={"temperature": 0, "seed": 3})
    assert (answer.message.role, answer.message.content) == ("assistant", "Hi there")
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "stop", 2)
    assert (answer.prompt_eval_duration, answer.eval_duration) == (500_000_000, 250_000_000)
    assert answer.total_duration == 750_000_000
    assert answer.prompt_eval_count == len(model.requests[0].prompt)
    [request] = model.requests
    assert (request.sampling.temperature, request.sampling.seed) == (0, 3)
    parts = [part async for part in await client.chat("covey-mini", HELLO, stream=True)]
    assert [part.message.content for part in parts] == ["Hi", " there", ""]
    assert [part.done for part in parts] == [False, False, True]
    assert (parts[-1].eval_count, parts[-1].done_reason) == (2, "stop")


async def test_generate(client: ollama.AsyncClient, model: Any) -> None:
    answer = await client.generate("covey-mini", "hello", options=ollama.Options(num_predict=1))
    assert (answer.response, answer.done_reason) == ("Hi", "length")
    stream = await client.generate("covey-mini", "raw", raw=True, stream=True)
    assert [part.response async for part in stream] == ["Hi", " there", ""]
    assert model.requests[-1].prompt == (256, *b"raw")
    answer = await client.generate("covey-mini")
    assert (answer.response, answer.done, answer.done_reason) == ("", True, "load")


async def test_a_format_is_kept(client: ollama.AsyncClient, model: Any) -> None:
    await client.chat("covey-mini", HELLO, format={"type": "boolean"})
    assert "true" in model.requests[-1].sampling.grammar
    await client.generate("covey-mini", "hello", format="json")
    assert model.requests[-1].sampling.grammar


@pytest.mark.parametrize("stream", [False, True])
async def test_a_function_is_called_and_its_result_goes_back(
    client: ollama.AsyncClient, model: Any, stream: bool
) -> None:
    def weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: where
        """
        return f"rain in {city}"

    model.script = [b'<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>']
    answer = await client.chat("covey-mini", HELLO, tools=[weather], stream=stream)
    messages = [part.message async for part in answer] if stream else [answer.message]
    [call] = [call for message in messages for call in message.tool_calls or []]
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Bonn"})
    said = {"role": "assistant", "tool_calls": [call]}
    result = {"role": "tool", "content": weather(**call.function.arguments), "tool_name": "weather"}
    await client.chat("covey-mini", [*HELLO, said, result], tools=[weather])
    shown = bytes(model.requests[-1].prompt[1:]).decode()
    assert shown.endswith(
        'hello<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>rain in Bonn'
    )


async def test_embeddings(client: ollama.AsyncClient) -> None:
    answer = await client.embed("covey-mini", ["a", "bc"])
    assert (answer.embeddings, answer.prompt_eval_count) == ([[1, 1], [1, 2]], 7)
    assert (await client.embeddings("covey-mini", "abc")).embedding == [1, 3]


async def test_models(client: ollama.AsyncClient) -> None:
    [listed] = (await client.list()).models
    assert (listed.model, listed.size) == ("covey-mini", 0)
    assert listed.modified_at.timestamp() == NOW
    [running] = (await client.ps()).models
    assert (running.model, running.digest) == ("covey-mini", listed.digest)
    assert running.expires_at.year == 2318
    shown = await client.show("covey-mini:latest")
    assert shown.modelinfo["covey.context_length"] == 256
    assert shown.capabilities == ["completion"]


async def test_errors_are_those_of_the_client(client: ollama.AsyncClient, model: Any) -> None:
    for call, status, said in (
        (client.chat("nobody", HELLO), 404, "covey-mini"),
        (client.show("nobody"), 404, "model 'nobody' not found"),
        (client.chat("covey-mini", HELLO, options={"temperature": -1}), 400, "temperature"),
        (client.generate("covey-mini", "a", images=["iVBORw0K"]), 400, "reads text only"),
    ):
        with pytest.raises(ollama.ResponseError, match=said) as caught:
            await call
        assert caught.value.status_code == status
    model.health = ("loading", "layers 3 of 9")
    with pytest.raises(ollama.ResponseError, match="layers 3 of 9"):
        await anext(await client.chat("covey-mini", HELLO, stream=True))
