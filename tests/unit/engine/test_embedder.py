"""Embeddings and ranks by llama.cpp: those of the reference, alone or beside any others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path

import bert_models
import gguf
import llama_cpp
import numpy as np
import pytest
from bert_models import Bert
from encoder_models import t5_embedding, write_encoder
from tiny_models import write_model

from agent.engine.embedder import Embedder, pooled_context
from agent.engine.gguf_file import GgufFile
from agent.engine.llama import Weights
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, EngineError

pytestmark = pytest.mark.slow

NEAR = (
    ("The cat sits on the mat.", "A kitten is resting on a rug."),
    ("How do I reset my password?", "I forgot my login and want to set a new one."),
    ("Stock markets fell sharply on Tuesday.", "Shares lost much of their value this week."),
)
TEXTS = (
    *(text for pair in NEAR for text in pair),
    "Ça va? Naïve café, l'été! 50% of $5 <a+b>",
    "Unbelievable electroencephalography, said the pneumonologist (twice).",
    "x",
    "On the " + "very " * 150 + "long road.",
)

# The last one has the letters of the first in another order.
SEVERAL = ("the ring", "a ring of stages", "stages of the ring " * 3, "gnir eht")


@asynccontextmanager
async def serving(
    path: Path, *, longest: int = 256, rows: int = 256, sequences: int = 8,
    pooling: int = 0, broken: list[CoveyError] | None = None,
) -> AsyncIterator[Embedder]:  # fmt: skip
    with GgufFile(path) as file:
        purpose, pooling = file.purpose, file.pooling or pooling
    weights = Weights(path)
    context = pooled_context(
        weights, pooling, rows=max(longest, rows), sequences=sequences, threads=1
    )
    embedder = Embedder(
        path.stem, purpose, context, longest=longest, rows=rows,
        on_broken=[].append if broken is None else broken.append,
    )  # fmt: skip
    try:
        yield embedder
    finally:
        await embedder.stop()
        weights.close()


async def test_a_real_model_gives_what_its_description_computes(
    minilm: Bert, minilm_file: Path
) -> None:
    async with serving(minilm_file) as embedder:
        assert (embedder.purpose, embedder.width) == ("embeddings", 384)
        texts = [embedder.tokenize(text) for text in TEXTS]
        assert [list(ids) for ids in texts] == [minilm.tokens(text) for text in TEXTS]
        found = await embedder.encode(texts)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    for text, vector in zip(TEXTS, found, strict=True):
        assert vector @ minilm.embedding(text) > 0.999, text


async def test_near_sentences_are_near_and_others_are_not(minilm_file: Path) -> None:
    async with serving(minilm_file) as embedder:
        texts = [text for pair in NEAR for text in pair]
        found = await embedder.encode([embedder.tokenize(text) for text in texts])
    alike = found @ found.T
    near = {(2 * pair, 2 * pair + 1) for pair in range(len(NEAR))}
    far = set(combinations(range(len(texts)), 2)) - near
    assert min(alike[pair] for pair in near) > 0.5
    assert max(alike[pair] for pair in far) < 0.2


async def test_who_shares_a_batch_does_not_matter(minilm_file: Path) -> None:
    async with serving(minilm_file, rows=64) as embedder:
        texts = [embedder.tokenize(text) for text in TEXTS * 2]
        together = await embedder.encode(texts)
        batches = embedder.stats["batches"]
        assert batches < len(texts) / 2, "they did not share batches"
        alone = [await embedder.encode([text]) for text in texts]
        shuffled = await asyncio.gather(*(embedder.encode([text]) for text in reversed(texts)))
    assert embedder.stats["texts"] == 3 * len(texts)
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(shuffled[::-1]), together, atol=1e-4)


async def test_ranks_are_those_of_the_reference(tmp_path: Path) -> None:
    bert = bert_models.tiny(ranks=True)
    path = bert.write(tmp_path / "rank.gguf", gguf.PoolingType.RANK)
    documents = ["the ring", "the stage.", "a ring of a stage", "zebra", "[SEP] ring"]
    async with serving(path, longest=64) as embedder:
        assert (embedder.purpose, embedder.width) == ("ranks", 1)
        pairs = [embedder.pair("the ring.", document) for document in documents]
        # The name of a separator in a document is a text, not one more separator.
        assert [list(ids) for ids in pairs] == [bert.pair("the ring.", d) for d in documents]
        found = await embedder.encode(pairs)
    expected = [bert.score("the ring.", document) for document in documents]
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(found[:, 0], expected, atol=5e-3)


async def test_a_model_for_ranks_may_bring_its_own_template(tmp_path: Path) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_chat_template([{"name": "rerank", "template": "<s>{query} of {document}</s>"}])

    path = write_model(tmp_path / "rank.gguf", layers=2, extra=extra)
    async with serving(path) as embedder:
        assert embedder.purpose == "ranks"
        pair = embedder.pair("the {document}", "ring")
        assert pair == embedder.tokenize("<s>the {document} of ring</s>")
        assert (pair[0], pair.count(1), pair[-1]) == (1, 1, 2)


@pytest.mark.parametrize("architecture", ["nomic-bert", "jina-bert-v2", "qwen3"])
async def test_other_architectures_give_what_llama_cpp_gives_for_each_text_alone(
    tmp_path: Path, architecture: str
) -> None:
    path = write_encoder(tmp_path / "model.gguf", architecture)
    found = await embeddings_of_several(path)
    # llama-cpp-python's own class shares no code with ours.
    model = llama_cpp.Llama(
        str(path), embedding=True, n_ctx=256, n_batch=256, n_ubatch=256, n_threads=1, verbose=False,
        flash_attn=True,
    )  # fmt: skip
    expected = np.array([model.embed(text, normalize=True) for text in SEVERAL])
    model.close()
    np.testing.assert_allclose(found, expected, atol=1e-4)


async def test_the_encoder_of_t5_gives_what_its_description_computes(tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "model.gguf", "t5encoder")
    found = await embeddings_of_several(path, gguf.PoolingType.MEAN)
    weights = Weights(path)
    ids = [Vocabulary(weights).tokenize(text, special=True) for text in SEVERAL]
    weights.close()
    expected = [t5_embedding(path, text) for text in ids]
    np.testing.assert_allclose(found, expected, atol=2e-3)


async def embeddings_of_several(path: Path, pooling: int = 0) -> np.ndarray:
    async with serving(path, rows=64, pooling=pooling) as embedder:
        assert embedder.purpose == "embeddings"
        found = await embedder.encode([embedder.tokenize(text) for text in SEVERAL])
        assert embedder.stats["batches"] < len(SEVERAL), "they did not share batches"
    assert np.max(found @ found.T - 2 * np.eye(len(SEVERAL))) < 0.9995, "all alike"
    return found


async def test_an_encoder_that_does_not_say_how_to_pool_takes_the_mean(tmp_path: Path) -> None:
    bert = bert_models.tiny(ranks=False)
    path = bert.write(tmp_path / "open.gguf", None)
    async with serving(path, longest=64, pooling=gguf.PoolingType.MEAN) as embedder:
        assert embedder.purpose == "embeddings"
        (found,) = await embedder.encode([embedder.tokenize("the ring")])
    assert found @ bert.embedding("the ring") > 0.999


async def test_the_longest_text_fits_and_a_longer_one_is_our_own_mistake(tmp_path: Path) -> None:
    bert = bert_models.tiny(ranks=False)
    path = bert.write(tmp_path / "model.gguf", gguf.PoolingType.CLS)
    async with serving(path, longest=64, rows=16) as embedder:
        (found,) = await embedder.encode([[5] * 64])
        row = bert.rows([5] * 64)[0]
        assert found @ row / np.linalg.norm(row) > 0.999
        with pytest.raises(ValueError, match="64 are the most"):
            await embedder.encode([[5] * 65])
        with pytest.raises(ValueError, match="at least one token"):
            await embedder.encode([[]])


async def test_who_leaves_is_dropped_and_the_others_go_on(minilm_file: Path) -> None:
    async with serving(minilm_file, rows=64, sequences=2) as embedder:
        text = embedder.tokenize("A sentence of some length, that is computed again and again.")
        left = asyncio.create_task(embedder.encode([text] * 2000))
        stays = asyncio.create_task(embedder.encode([text] * 3))
        await asyncio.sleep(0)
        await stays
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        texts = embedder.stats["texts"]
        await embedder.encode([text])
        assert embedder.stats["texts"] - texts <= 2 + 2, "it was computed for nobody"


async def test_a_stop_ends_what_runs(minilm_file: Path) -> None:
    broken: list[CoveyError] = []
    async with serving(minilm_file, rows=64, sequences=2, broken=broken) as embedder:
        assert embedder.state() == ("ready", "")
        text = embedder.tokenize("A sentence.")
        running = asyncio.create_task(embedder.encode([text] * 2000))
        await asyncio.sleep(0)
        await embedder.stop()
        with pytest.raises(EngineError, match="stopping"):
            await running
        with pytest.raises(EngineError, match="stopping"):
            await embedder.encode([text])
        assert embedder.state()[0] == "broken"
    assert broken == []


async def test_a_fault_of_llama_cpp_ends_all_and_is_told_once(
    minilm_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: list[CoveyError] = []
    async with serving(minilm_file, broken=broken) as embedder:
        text = embedder.tokenize("A sentence.")
        await embedder.encode([text])
        monkeypatch.setattr(llama_cpp, "llama_get_embeddings_seq", lambda *_: None)
        runs = [embedder.encode([text]) for _ in range(3)]
        found = await asyncio.gather(*runs, return_exceptions=True)
        assert {type(error) for error in found} == {EngineError}
        assert embedder.state() == ("broken", "sequence 0 of the last batch has no vector.")
    assert [error.message for error in broken] == ["sequence 0 of the last batch has no vector."]
