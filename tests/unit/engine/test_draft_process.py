"""Engine processes with a draft model: loaded by the head, and refused with one line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import engine_rings as rings
import pytest
import tiny_models as tiny

from agent.engine.spec import EngineSpec
from agent.engine.supervisor import Engine
from agent.errors import ConfigError, ModelError

pytestmark = pytest.mark.slow

COMMON = {"n_ctx": rings.N_CTX, "n_batch": rings.N_BATCH, "slots": 4, "threads": 1}
RING = {
    "ring": "5b" * 16, "epoch": 3, "stages": 2, "listen": "127.0.0.1", "predecessor": "127.0.0.1",
    "silence_s": 10.0, "least_silence_s": 10.0, "join_timeout_s": 20.0,
}  # fmt: skip
PROMPT = "the ring of stages is a ring of the stages "


def whole(path: Path, cache: str, draft: Path) -> EngineSpec:
    return EngineSpec(
        role="whole", files=(str(path),), model_name="tiny", http_address="::1",
        cache=cache, draft_file=str(draft) if draft.name else "", **COMMON,
    )  # fmt: skip


async def complete(engine: Engine) -> tuple[str, dict[str, float]]:
    host = engine.spec.http_address
    url = f"http://{f'[{host}]' if ':' in host else host}:{engine.http_port}/v1/completions"
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 100, "temperature": 0}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body) as reply,
    ):
        answer = await reply.json()
        assert reply.status == 200, answer
        return answer["choices"][0]["text"], answer["timings"]


@asynccontextmanager
async def running(*specs: EngineSpec) -> AsyncIterator[Engine]:
    engines: list[Engine] = []
    try:
        for spec in specs:
            engines.append(await Engine.start(spec))
        if len(engines) > 1:
            await engines[0].connect("127.0.0.1", engines[1].port)
            await engines[1].connect("127.0.0.1", engines[0].port)
        for engine in engines:
            await engine.wait_ready()
        yield engines[0]
    finally:
        for engine in engines:
            await engine.stop()


async def test_a_whole_model_and_a_ring_answer_with_a_draft_as_without(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    path, draft = models(), models(seed=5, layers=2)
    async with running(whole(path, cache, Path())) as engine:
        expected, _ = await complete(engine)
    async with running(whole(path, cache, draft)) as engine:
        assert (await complete(engine))[0] == expected
    first, middle, last = rings.cut(path, tmp_path, (5, 9))
    async with running(
        EngineSpec(role="head", files=(str(first), str(last)), model_name="tiny",
                   http_address="127.0.0.1", cache=cache, draft_file=str(draft),
                   **COMMON, **RING),
        EngineSpec(role="stage", files=(str(middle),), stage=1, cache=cache, **COMMON,
                   **RING),
    ) as engine:  # fmt: skip
        assert (await complete(engine))[0] == expected


async def test_a_draft_of_other_tokens_keeps_the_engine_from_starting(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    shape = replace(tiny.Shape(), layers=2, vocabulary=410)
    draft = tiny.write_model(tmp_path / "alien.gguf", shape=shape)
    with pytest.raises(ModelError, match=r"alien\.gguf cannot be the draft model of tiny") as found:
        await Engine.start(whole(models(), cache, draft))
    assert "Take a draft model of the same family" in found.value.hint
    with pytest.raises(ModelError, match="nowhere"):
        await Engine.start(whole(models(), cache, tmp_path / "nowhere.gguf"))


def test_only_who_samples_has_a_draft_model(models: Callable[..., Path]) -> None:
    path = str(models())
    stage = EngineSpec(
        role="stage", files=(path,), stage=1, draft_file=path, **COMMON, **RING
    )  # fmt: skip
    silent = EngineSpec(role="whole", files=(path,), draft_file=path, drafts="none", **COMMON)
    for spec in (stage, silent):
        with pytest.raises(ConfigError, match="a draft model is for a head"):
            spec.check()
