"""A build of a model that stays in one piece: a real engine on its node, or a reason."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import gguf
import pytest

from agent import config
from agent.deploy.build import Build
from agent.deploy.engines import Engines
from agent.deploy.needs import draft_bytes, model_needs
from agent.deploy.parts import Parts
from agent.deploy.planning import Own
from agent.deploy.wish import Wish
from agent.engine.cuttable import CutRule
from agent.engine.gguf_file import GgufFile
from agent.errors import EngineError, ModelError, UsageError
from agent.identity.keys import NodeKey
from agent.models import bundled
from agent.models.fetch import Progress, Watch
from agent.ownership.lease import Token
from agent.placement.inputs import Node

# The models of the engine's tests, which pytest's importlib mode does not put on the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

import bert_models

pytestmark = pytest.mark.slow


# Not those of another file, which may run beside this one.
PORTS = "network.engine_ports=7200-7219"
OWN = NodeKey(bytes(32)).id


class NobodyToAsk:
    """A mesh that must not be asked what other nodes can hold."""

    def live_workers(self, now: float) -> list[Any]:
        raise AssertionError("a model that stays in one piece needs no other node")


class NobodyElse:
    """A mesh of one."""

    def live_workers(self, now: float) -> list[Any]:
        return []


@pytest.fixture
def build(tmp_path: Path, cache: str) -> Callable[..., Any]:
    @asynccontextmanager
    async def started(
        mesh: Any = None, stored: Any = None, **changes: Any
    ) -> AsyncIterator[Build]:  # fmt: skip
        settings, _ = config.load(
            Path("/dev/null"), {}, [f"node.state_dir={tmp_path}", "engine.threads=1", PORTS]
        )
        engines = Engines(settings, bytes(32), OWN)
        engines._cache = lambda: cache  # type: ignore[method-assign] # one self-test for all
        engines.own_address = "::1"
        if changes.get("draft") == "m.gguf":
            changes["draft"] = str(tmp_path / "m.gguf")
        fields = {"name": "m", "model": str(tmp_path / "m.gguf"), "author": bytes(32),
                  "generation": 1, "at": 0}  # fmt: skip
        made = Build(
            Wish(**fields | changes), "ab" * 16, 1, settings=settings, engines=engines,
            own=Own(Node(str(OWN), "box", 2**30)), blobs=None,
            parts=Parts(tmp_path / "parts"), mesh=mesh or NobodyToAsk(),  # type: ignore[arg-type] # see above
            progress=lambda *_: None, token=lambda: Token(1, bytes(32)), stored=stored,
        )  # fmt: skip
        try:
            yield made
        finally:
            await made.down()

    bert_models.tiny(ranks=False, context=80).write(tmp_path / "m.gguf", gguf.PoolingType.MEAN)
    return started


async def test_a_model_for_embeddings_answers_on_its_node(build: Any) -> None:
    async with build() as made:
        head = await made.up()
        assert made.context == 80
        assert made.reasons[0].startswith("1 node: it runs on one node, since m.gguf is for embed")
        url = f"http://[::1]:{head.http_port}/v1/embeddings"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json={"model": "m", "input": "the ring"}) as answer,
        ):
            assert answer.status == 200
            assert len((await answer.json())["data"][0]["embedding"]) == 32


async def test_a_draft_model_is_loaded_beside_the_model_and_counted(build: Any) -> None:
    mini = {"model": bundled.NAME, "nodes": 1, "context": 128}
    async with build(**mini, draft=bundled.NAME, mesh=NobodyElse()) as made:
        head = await made.up()
        assert made.plan.whole
        spec = head.spec
        assert (spec.files, spec.draft_file) == ((str(bundled.path()),), str(bundled.path()))
        *planned, held, _ = made.reasons
        assert re.fullmatch(r".* draft model covey-mini\.gguf too, \d+\.\d MiB", held)
        url = f"http://[::1]:{head.http_port}/v1/completions"
        asked = {"model": "m", "prompt": "one two", "max_tokens": 8, "temperature": 0}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=asked) as answer,
        ):
            assert answer.status == 200
    with GgufFile(bundled.path()) as file:
        facts = file.facts()
    alone = model_needs(facts, 128, CutRule())
    cache = 128 * alone.kv_bytes * len(alone.layer_bytes)
    needed = sum(alone.layer_bytes) + cache + alone.head_bytes + draft_bytes(facts, 128)
    assert f"{needed / 2**20:.1f} MiB" in planned[-1]


async def test_a_draft_model_that_is_none_is_an_error_of_one_line(build: Any) -> None:
    for draft, error, said in (
        ("/nowhere.gguf", ModelError, "there is no model /nowhere.gguf"),
        ("m.gguf", ModelError, "m.gguf cannot be a draft model: it is for embeddings"),
    ):
        async with build(
            model=bundled.NAME, nodes=1, context=128, mesh=NobodyElse(), draft=draft
        ) as made:
            with pytest.raises(error, match=said):
                await made.up()
    async with build(draft=bundled.NAME) as made:
        with pytest.raises(UsageError, match="is for embeddings: a draft model has nothing"):
            await made.up()


MINI, DRAFT = "ab" * 32, "cd" * 32


class Elsewhere:
    """Stored models that only other members have: headers first, then what is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []

    def path(self, model_id: str) -> None:
        return None

    async def header(self, model_id: str) -> Path:
        """Return the header alone: what llama.cpp would refuse as a model."""
        with GgufFile(bundled.path()) as model:
            size, raw = model.size, model.data[: model.data_start]
        path = self.folder / "mini.gguf"
        path.write_bytes(raw)
        os.truncate(path, size)
        return path

    async def whole(self, model_id: str, name: str, watch: Watch) -> Path:
        self.fetched.append(name)
        watch(Progress(1, 2, 1.0))
        return bundled.path()


async def test_what_a_head_must_have_as_a_whole_is_fetched_once_it_is_planned(
    build: Any, tmp_path: Path
) -> None:
    stored = Elsewhere(tmp_path)
    wish = {"model": "mini", "model_id": MINI, "draft": "small", "draft_id": DRAFT}
    async with build(
        **wish, nodes=1, context=128, mesh=NobodyElse(), stored=stored
    ) as made:  # fmt: skip
        head = await made.up()
        assert stored.fetched == ["mini", "small"]
        assert head.spec.files == (str(bundled.path()),)
        assert head.spec.draft_file == str(bundled.path())
        url = f"http://[::1]:{head.http_port}/v1/completions"
        asked = {"model": "m", "prompt": "one two", "max_tokens": 4, "temperature": 0}
        async with aiohttp.ClientSession() as session, session.post(url, json=asked) as answer:
            assert answer.status == 200


async def test_a_plan_that_cannot_be_fetches_nothing_but_headers(
    build: Any, tmp_path: Path
) -> None:
    stored = Elsewhere(tmp_path)
    wish = {"model": "mini", "model_id": MINI}
    async with build(**wish, mesh=NobodyElse(), stored=stored, context=10**9) as made:
        with pytest.raises(ModelError, match="MiB"):
            await made.up()
    assert stored.fetched == []
    async with build(**wish) as made:
        with pytest.raises(EngineError, match="no store of models"):
            await made.up()


async def test_it_is_not_cut_over_two(build: Any) -> None:
    async with build(nodes=2) as made:
        with pytest.raises(UsageError, match=r"not on 2: m\.gguf is for embeddings") as caught:
            await made.up()
        assert caught.value.hint == "Ask for 1 node, or for no number of them."
