"""Ollama's own client, and plain HTTP, before a gateway with a real head behind it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import ollama
import pytest

from agent.errors import EngineError

HELLO: Any = [{"role": "user", "content": "hello"}]
CHAT = {"model": "covey-mini", "messages": HELLO}


@pytest.fixture
def model(scripted: Any) -> Any:
    return scripted([b"Hi", b" there"])


@pytest.fixture
async def url(serve: Any, gateway: Any, head: Any, model: Any) -> str:
    found: str = await gateway(head("den", await serve(model), "covey-mini"))
    return found


@pytest.fixture
async def client(url: str) -> AsyncIterator[ollama.AsyncClient]:
    made = ollama.AsyncClient(url)
    yield made
    await made._client.aclose()


async def call(url: str, path: str, body: Any = None) -> tuple[int, str, str]:
    method = "GET" if body is None else "POST"
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url + path, json=body) as answer,
    ):
        return answer.status, answer.content_type, await answer.text()


async def test_answers(client: ollama.AsyncClient) -> None:
    answer = await client.chat("covey-mini:latest", HELLO)
    assert (answer.message.content, answer.eval_count) == ("Hi there", 2)
    parts = [part async for part in await client.chat("covey-mini", HELLO, stream=True)]
    assert [part.message.content for part in parts] == ["Hi", " there", ""]
    stream = await client.generate("covey-mini", "hello", stream=True)
    assert [part.response async for part in stream] == ["Hi", " there", ""]
    assert (await client.generate("covey-mini")).done_reason == "load"


async def test_models(client: ollama.AsyncClient, url: str) -> None:
    assert [listed.model for listed in (await client.list()).models] == ["covey-mini"]
    assert [running.model for running in (await client.ps()).models] == ["covey-mini"]
    assert (await client.show("covey-mini")).modelinfo["covey.context_length"] == 256
    assert json.loads((await call(url, "/api/version"))[2]) == {"version": "0.13.0"}
    assert (await call(url, "/"))[2] == "Ollama is running"


async def test_errors(client: ollama.AsyncClient, url: str) -> None:
    for asked, status, said in (
        (client.chat("nobody", HELLO), 404, "covey-mini"),
        (client.show("nobody"), 404, "not found"),
        (client.embed("covey-mini", "a"), 400, "does not do embeddings"),
        (client.generate("covey-mini", "a", images=["iVBORw0K"]), 400, "reads text only here"),
    ):
        with pytest.raises(ollama.ResponseError, match=said) as caught:
            await asked
        assert caught.value.status_code == status
    status, _, text = await call(url, "/api/tags", {})
    assert (status, json.loads(text)) == (405, {"error": "/api/tags does not take POST."})


async def test_a_stream_is_lines_and_ends_with_its_error(url: str, model: Any) -> None:
    status, content_type, _ = await call(url, "/api/chat", CHAT)
    assert (status, content_type) == (200, "application/x-ndjson")
    model.script = [b"Hi", EngineError("stage 1 is gone")]
    _, _, text = await call(url, "/api/chat", CHAT)
    assert json.loads(text.splitlines()[-1]) == {"error": "stage 1 is gone."}


async def test_tokens_pass(url: str) -> None:
    assert await call(url, "/tokenize", {"content": "hi"}) == (
        200, "application/json", '{"tokens":[104,105]}'
    )  # fmt: skip
    assert (await call(url, "/detokenize", {"tokens": [104]}))[2] == '{"content":"h"}'
    status, _, text = await call(url, "/tokenize", {"content": 5})
    assert (status, json.loads(text)["error"]["type"]) == (400, "invalid_request_error")
    status, _, text = await call(url, "/tokenize", {"content": "a", "model": "nobody"})
    assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")
    replicas = json.loads((await call(url, "/gateway/status"))[2])["replicas"]
    assert replicas[0]["first_byte_s"] == {}, "a vocabulary's speed is not the model's"


async def test_the_earlier_system(url: str) -> None:
    assert json.loads((await call(url, "/generate", {"prompt": "a"}))[2])["text"] == "Hi there"
    status, content_type, text = await call(url, "/generate", {"prompt": "a", "stream": True})
    assert (status, content_type) == (200, "text/event-stream")
    assert text.startswith('data: {"text":"Hi","done":false}\n\n')
    status, _, text = await call(url, "/generate", {"prompt": "a", "temperature": -1})
    assert (status, "temperature" in json.loads(text)["error"]) == (400, True)
    assert json.loads((await call(url, "/peers"))[2])["count"] == 1
    assert json.loads((await call(url, "/peers/metrics"))[2])["peers"][0]["requests"] == 3
