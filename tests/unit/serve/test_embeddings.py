"""The server of embeddings before a scripted encoder: state, limits, clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import numpy as np
import pytest

from agent.engine.embedding import Vectors
from agent.engine.generation import ModelState
from agent.engine.purpose import Purpose
from agent.engine.serve import embeddings as module
from agent.engine.serve.embeddings import make_app
from agent.engine.serve.site import serve
from agent.errors import EngineError, UsageError

WIDTH = 3


class ScriptedEncoder:
    """A byte is a token, and a text's vector its length; `gate` holds answers back."""

    def __init__(self, purpose: Purpose = "embeddings") -> None:
        self.name = "m"
        self.context = 50_000
        self.created = 1_700_000_000
        self.purpose: Purpose = purpose
        self.width = WIDTH
        self.health: tuple[ModelState, str] = ("ready", "")
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.running = 0
        self.left = asyncio.Event()

    def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(text.strip().encode())

    def pair(self, query: str, document: str) -> tuple[int, ...]:
        return tuple((query + document).encode())

    def check(self, ids: Sequence[int]) -> None:
        if max(ids) > 255:
            raise UsageError(f"the token {max(ids)} is not one of the model's 256.")

    def state(self) -> tuple[ModelState, str]:
        return self.health

    async def encode(self, texts: Sequence[Sequence[int]]) -> Vectors:
        self.running += 1
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            return np.array([[len(text)] * WIDTH for text in texts], np.float32)
        except asyncio.CancelledError:
            self.left.set()
            raise
        finally:
            self.running -= 1


@pytest.fixture
async def url_of() -> AsyncIterator[Callable[[ScriptedEncoder], Awaitable[str]]]:
    runners = []

    async def start(encoder: ScriptedEncoder) -> str:
        runner, port = await serve(make_app(encoder), "127.0.0.1", 0, cancels=True)
        runners.append(runner)
        return f"http://127.0.0.1:{port}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def post(url: str, path: str = "/v1/embeddings", **body: Any) -> tuple[int, Any, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + path, json={"model": "m", **body}) as answer,
    ):
        return answer.status, await answer.json(), answer.headers


async def test_long_requests_and_answers_are_made_in_threads(
    url_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INLINE_BYTES", 10)
    monkeypatch.setattr(module, "INLINE_VALUES", 2)
    status, answer, _ = await post(await url_of(ScriptedEncoder()), input=["abc", [1, 2]])
    assert status == 200
    assert [entry["embedding"] for entry in answer["data"]] == [[3.0] * 3, [2.0] * 3]
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


async def test_a_client_that_leaves_cancels_its_request(url_of: Any) -> None:
    encoder = ScriptedEncoder()
    encoder.gate.clear()
    url = await url_of(encoder)
    call = asyncio.create_task(post(url, input="abc"))
    async with asyncio.timeout(5):
        while not encoder.running:  # noqa: ASYNC110  # the encoder is asked over HTTP
            await asyncio.sleep(0.005)
        call.cancel()
        await encoder.left.wait()
    assert encoder.running == 0


async def test_too_many_are_sent_away(url_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REQUESTS", 1)
    encoder = ScriptedEncoder()
    encoder.gate.clear()
    url = await url_of(encoder)
    first = asyncio.create_task(post(url, input="abc"))
    async with asyncio.timeout(5):
        while not encoder.running:  # noqa: ASYNC110  # the encoder is asked over HTTP
            await asyncio.sleep(0.005)
    status, answer, headers = await post(url, input="abc")
    assert (status, headers["Retry-After"]) == (503, "5")
    assert "1 requests are waiting for m already" in answer["error"]["message"]
    encoder.gate.set()
    assert (await first)[0] == 200


async def test_a_broken_engine_is_503(url_of: Any) -> None:
    encoder = ScriptedEncoder()
    url = await url_of(encoder)
    encoder.error = EngineError("llama.cpp failed.")
    assert (await post(url, input="abc"))[0] == 503
    encoder.health = ("broken", "llama.cpp failed.")
    status, answer, _ = await post(url, input="abc")
    assert status == 503 and "m is broken: llama.cpp failed" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("purpose", "path", "body", "message"),
    [
        ("embeddings", "/v1/embeddings", {"input": " "}, "`input[0]` holds no token of this model"),
        ("embeddings", "/v1/embeddings", {"input": [256]}, "the token 256 is not one"),
        ("embeddings", "/v1/embeddings", {"input": "a" * 50_001}, "takes 50000 at most"),
        ("embeddings", "/v1/rerank", {}, "does not do reranking; it is for embeddings"),
        ("embeddings", "/v1/chat/completions", {}, "does not do chats; it is for embeddings"),
        ("embeddings", "/tokenize", {"content": "a"}, "does not do tokenizing"),
        ("ranks", "/detokenize", {"tokens": [1]}, "does not do tokenizing; it is for rerank"),
        ("ranks", "/v1/embeddings", {}, "does not do embeddings; it is for rerank"),
        ("ranks", "/v1/completions", {}, "does not do completions; it is for rerank"),
        ("ranks", "/v1/rerank", {"query": "a" * 50_000, "documents": ["b"]},
         "`documents[0]` with the query has 50001 tokens"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_in_one_line(
    url_of: Any, purpose: Purpose, path: str, body: Any, message: str
) -> None:
    status, answer, _ = await post(await url_of(ScriptedEncoder(purpose)), path, **body)
    assert status == 400
    assert message in answer["error"]["message"] and "\n" not in answer["error"]["message"]


async def test_ranks(url_of: Any) -> None:
    encoder = ScriptedEncoder("ranks")
    url = await url_of(encoder)
    status, answer, _ = await post(url, "/v1/rerank", query="q", documents=["a", "abc", "ab"])
    assert status == 200
    assert [result["index"] for result in answer["results"]] == [1, 2, 0]
    assert answer["results"][0]["relevance_score"] == 4.0
