"""A real engine process that serves embeddings or ranks, asked over HTTP by the official client."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import bert_models
import gguf
import numpy as np
import openai
import pytest
from bert_models import Bert

from agent.engine.spec import EngineSpec
from agent.engine.supervisor import Engine
from agent.errors import ConfigError, ModelError

pytestmark = pytest.mark.slow

TEXTS = ["The cat sits on the mat.", "A kitten is resting on a rug.", "Stocks fell on Tuesday."]


@asynccontextmanager
async def running(path: Path, cache: str, **changes: Any) -> AsyncIterator[Engine]:
    spec = EngineSpec(role="whole", files=(str(path),), model_name="m", threads=1, cache=cache,
                      http_address="127.0.0.1", **changes)  # fmt: skip
    engine = await Engine.start(spec)
    try:
        yield engine
    finally:
        await engine.stop()


def base(engine: Engine) -> str:
    return f"http://127.0.0.1:{engine.http_port}"


async def ask(engine: Engine, path: str, **body: Any) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(base(engine) + path, json={"model": "m", **body}) as answer,
    ):
        return answer.status, await answer.json()


async def refusal(engine: Engine, path: str, **body: Any) -> str:
    status, answer = await ask(engine, path, **body)
    assert status == 400 and "\n" not in answer["error"]["message"]
    return answer["error"]["message"]


async def test_embeddings_by_the_official_client(
    minilm: Bert, minilm_file: Path, cache: str
) -> None:
    async with running(minilm_file, cache) as engine:
        client = openai.AsyncOpenAI(base_url=base(engine) + "/v1", api_key="none", max_retries=0)
        async with client:
            # It asks for base64 where nobody says how, and decodes it.
            answer = await client.embeddings.create(model="m", input=TEXTS)
            vectors = np.array([entry.embedding for entry in answer.data])
            expected = np.stack([minilm.embedding(text) for text in TEXTS])
            assert np.min((vectors * expected).sum(axis=1)) > 0.999
            assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
            assert [entry.index for entry in answer.data] == [0, 1, 2]
            tokens = [minilm.tokens(text) for text in TEXTS]
            count = sum(map(len, tokens))
            assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (count, count)
            assert answer.model == "m"

            plain = await client.embeddings.create(
                model="m", input=TEXTS[0], encoding_format="float", dimensions=384
            )
            assert np.array(plain.data[0].embedding) == pytest.approx(vectors[0], abs=1e-4)
            for given in (tokens[0], tokens[:2]):
                by_ids = await client.embeddings.create(model="m", input=given)
                assert by_ids.data[0].embedding == pytest.approx(list(vectors[0]), abs=1e-4)

            [entry] = (await client.models.list()).data
            assert entry.model_extra["capabilities"] == ["embeddings"]
            assert entry.model_extra["context_length"] == 512
            with pytest.raises(openai.BadRequestError, match="does not do chats; it is for embedd"):
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "hello"}]
                )
            with pytest.raises(openai.NotFoundError, match="'other' does not exist here"):
                await client.embeddings.create(model="other", input="x")
        assert "does not do reranking" in await refusal(engine, "/v1/rerank", query="a")
        assert "does not do completions" in await refusal(engine, "/v1/completions", prompt="a")
        unknown = await refusal(engine, "/v1/embeddings", input=[1, 30522])
        assert unknown.startswith("the token 30522 is not one of the model's 30522")
        with pytest.raises(ConfigError, match="an engine without a ring cannot go over"):
            await engine.regroup(engine.spec)
        assert not engine.ended
        await engine.tell(10.0)
        assert engine.stats["texts"] == 3 + 1 + 1 + 2
    assert engine.stats["texts"] == 3 + 1 + 1 + 2


async def test_base64_holds_what_floats_say(minilm_file: Path, cache: str) -> None:
    async with running(minilm_file, cache) as engine:
        answers = [
            await ask(engine, "/v1/embeddings", input=TEXTS[:1], encoding_format=encoding)
            for encoding in ("float", "base64")
        ]
        (floats, text) = (answer["data"][0]["embedding"] for _, answer in answers)
        raw = np.frombuffer(base64.b64decode(text), "<f4")
        assert raw.tolist() == floats


async def test_a_text_that_does_not_fit_is_refused_with_the_limit(
    minilm_file: Path, cache: str
) -> None:
    async with running(minilm_file, cache, n_ctx=100, n_batch=40) as engine:
        fits = "cat " * 98
        assert (await ask(engine, "/v1/embeddings", input=[fits, "cat"]))[0] == 200
        message = await refusal(engine, "/v1/embeddings", input=["cat", fits + "cat"])
        assert message == ("`input[1]` has 101 tokens; m takes 100 at most, since a text is"
                           " computed in one piece. Split it.")  # fmt: skip
        assert (await ask(engine, "/v1/embeddings", input="cat"))[0] == 200


async def test_many_clients_share_batches_and_one_that_leaves_is_dropped(
    minilm_file: Path, cache: str
) -> None:
    async with running(minilm_file, cache) as engine:
        many = asyncio.create_task(ask(engine, "/v1/embeddings", input=["the cat " * 20] * 2048))
        calls = [ask(engine, "/v1/embeddings", input=text) for text in TEXTS * 20]
        # The server has the large request when all of these are answered.
        assert {status for status, _ in await asyncio.gather(*calls)} == {200}
        many.cancel()
        await asyncio.wait([many])
        assert (await ask(engine, "/v1/embeddings", input="still there"))[0] == 200
    assert engine.stats["texts"] < 2048, "it was computed for nobody"
    assert engine.stats["batches"] < engine.stats["texts"] / 2


async def test_ranks_are_best_first(tmp_path: Path, cache: str) -> None:
    bert = bert_models.tiny(ranks=True)
    path = bert.write(tmp_path / "rank.gguf", gguf.PoolingType.RANK)
    documents = ["the ring", "the stage.", "zebra", "a ring"]
    scores = [bert.score("ring", document) for document in documents]
    order = sorted(range(4), key=lambda index: -scores[index])
    async with running(path, cache) as engine:
        status, answer = await ask(engine, "/v1/rerank", query="ring", documents=documents)
        assert status == 200
        assert [result["index"] for result in answer["results"]] == order
        found = [result["relevance_score"] for result in answer["results"]]
        assert found == pytest.approx([scores[index] for index in order], abs=5e-3)
        tokens = sum(len(bert.pair("ring", document)) for document in documents)
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        status, answer = await ask(
            engine, "/v1/rerank", query="ring", top_n=1, return_documents=True,
            documents=[{"text": document} for document in documents],
        )  # fmt: skip
        [best] = answer["results"]
        assert (best["index"], best["document"]) == (order[0], {"text": documents[order[0]]})
        long = await refusal(engine, "/v1/rerank", query="ring", documents=["a", "a " * 62])
        assert long.startswith("`documents[1]` with the query has 65 tokens; m takes 64 at most")
        assert "does not do embeddings" in await refusal(engine, "/v1/embeddings", input="a")


async def test_a_model_that_makes_text_has_no_embeddings(
    models: Callable[..., Path], cache: str
) -> None:
    async with running(models(), cache, n_ctx=256) as engine:
        for path, what in (("/v1/embeddings", "embeddings"), ("/v1/rerank", "reranking")):
            message = await refusal(engine, path, input="a")
            assert message.startswith(f"The model 'm' does not do {what}; it is for chat and compl")


@pytest.mark.parametrize(
    ("ranks", "pooling", "message"),
    [
        (False, gguf.PoolingType.RANK, "says that it ranks, but has no cls.output.weight nor"),
        (True, 7, r"odd\.gguf pools in a way that is not known \(7\)"),
    ],
)
async def test_a_model_that_cannot_be_what_it_says_is_refused(
    tmp_path: Path, cache: str, ranks: bool, pooling: int, message: str
) -> None:
    path = bert_models.tiny(ranks=ranks).write(tmp_path / "odd.gguf", pooling)
    with pytest.raises(ModelError, match=message):
        async with running(path, cache):
            pass


async def test_a_damaged_file_is_named(minilm_file: Path, cache: str, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(minilm_file.read_bytes()[:20_000_000])
    with pytest.raises(ModelError, match=r"short\.gguf is cut short"):
        async with running(path, cache):
            pass
