"""A head whose ring dies goes on with the same answers over another, as its clients see it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import engine_rings as rings
import msgspec
import pytest
import tiny_models as tiny
from ring_processes import running, specs

from agent.engine.spec import EngineSpec, RpcServer
from agent.engine.supervisor import Engine
from agent.errors import ConfigError, CoveyError, EngineError, ModelError

pytestmark = pytest.mark.slow

# Rounding depends on what else is in a batch, and now and then decides between two tokens. This
# model has nothing to round.
MODEL = {"forgetful": True}
TEXT = "the ring of stages is a ring of the stages "
COUNT = 300
COMMON = {"n_ctx": 2048, "flash_attention": False, "row_type": "f32", "join_timeout_s": 3.0}
LONG: dict[str, Any] = {"logit_bias": {"2": -100}, "max_tokens": COUNT}
# With the two choices of the last one more answers than slots, so that one waits.
ASKS: list[dict[str, Any]] = [
    {"prompt": TEXT * 3, "temperature": 0, **LONG},
    {"prompt": TEXT, "temperature": 1.2, "seed": 5, "frequency_penalty": 0.7, "repeat_penalty": 1.2,
     "repeat_last_n": 100, **LONG},
    {"prompt": "a ring", "temperature": 1.0, "seed": 9, **LONG,
     "grammar": 'root ::= ("the " | "ring " | "of " | [a-z]){60,} "." [a-z]*'},
    {"prompt": "stages", "temperature": 0.9, "seed": 3, "n": 2, "presence_penalty": 0.4, **LONG},
]  # fmt: skip


@dataclass
class Stream:
    """What a client hears: the texts of its choices, pieces, and how it ends."""

    texts: dict[int, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    pieces: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    done: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def reaches(self, pieces: int) -> None:
        while self.pieces < pieces:
            self.news.clear()
            await self.news.wait()

    @property
    def outcome(self) -> tuple[object, ...]:
        return self.texts, self.reasons, self.usage["completion_tokens"], self.error, self.done

    async def follow(self, engine: Engine, ask: dict[str, Any]) -> None:
        body = {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}, **ask}
        async with aiohttp.ClientSession() as session, session.post(url(engine), json=body) as got:
            assert got.status == 200, await got.text()
            async for line in got.content:
                if line.startswith(b"data: [DONE]"):
                    self.done = True
                elif line.startswith(b"data: "):
                    self._take(json.loads(line[6:]))

    def _take(self, event: dict[str, Any]) -> None:
        self.news.set()
        if "error" in event:
            self.error = event["error"]["message"]
        for choice in event.get("choices", []):
            index = choice["index"]
            self.texts[index] = self.texts.get(index, "") + choice["text"]
            self.pieces += 1
            if choice["finish_reason"]:
                self.reasons.append(choice["finish_reason"])
        self.usage = event.get("usage") or self.usage


def url(engine: Engine) -> str:
    return f"http://127.0.0.1:{engine.http_port}/v1/completions"


class Clients:
    """Several streams at once."""

    def __init__(self, engine: Engine, asks: list[dict[str, Any]] = ASKS) -> None:
        self.streams = [Stream() for _ in asks]
        self.tasks = [
            asyncio.create_task(stream.follow(engine, ask))
            for stream, ask in zip(self.streams, asks, strict=True)
        ]

    async def underway(self, pieces: int = 6) -> None:
        """Wait until each has said something more, and none has ended."""
        wanted = [stream.pieces + pieces for stream in self.streams]
        async with asyncio.timeout(20):
            for stream, pieces in zip(self.streams, wanted, strict=True):
                await stream.reaches(pieces)
        assert not any(stream.done for stream in self.streams)

    async def ended(self) -> list[tuple[object, ...]]:
        async with asyncio.timeout(40):
            await asyncio.gather(*self.tasks)
        return [stream.outcome for stream in self.streams]


_undisturbed: dict[int, list[tuple[object, ...]]] = {}


async def undisturbed(
    path: Path, cache: str, asks: list[dict[str, Any]] = ASKS
) -> list[tuple[object, ...]]:
    """Return what the whole model says in one go, computed once."""
    if len(asks) not in _undisturbed:
        common = {"n_batch": rings.N_BATCH, "slots": 4, "threads": 1, "cache": cache, **COMMON}
        spec = EngineSpec(role="whole", files=(str(path),), model_name="tiny",
                          http_address="127.0.0.1", **common)  # fmt: skip
        engine = await Engine.start(spec)
        found = _undisturbed[len(asks)] = await Clients(engine, asks).ended()
        await engine.stop()
        assert [outcome[3:] for outcome in found] == [("", True)] * len(asks)
    return _undisturbed[len(asks)]


async def refused(engine: Engine) -> str:
    """Ask anew; returns what is said to whoever comes while there is no ring."""
    body = {"model": "tiny", "prompt": "a", "stream": True}
    async with aiohttp.ClientSession() as session, session.post(url(engine), json=body) as reply:
        assert reply.status == 503
        assert int(reply.headers["Retry-After"]) > 0
        return (await reply.json())["error"]["message"]


def whole(path: Path, head: EngineSpec, **changes: object) -> EngineSpec:
    """Return the spec with which a head goes over to the whole model."""
    return msgspec.structs.replace(
        head, role="whole", files=(str(path),), stage=0, stages=1, **changes
    )


@asynccontextmanager
async def moved(head: Engine, wanted: list[EngineSpec]) -> AsyncIterator[list[Engine]]:
    """Have a head go over to another ring, whose stages are started."""
    async with AsyncExitStack() as stack:
        starts = [Engine.start(spec) for spec in wanted[1:]]
        *stages, _ = await asyncio.gather(*starts, head.regroup(wanted[0]))
        for stage in stages:
            stack.push_async_callback(stage.stop)
        engines = [head, *stages]
        for engine, successor in zip(engines, [*stages, head], strict=True):
            await engine.connect("127.0.0.1", successor.port)
        await asyncio.gather(*(engine.wait_ready() for engine in engines))
        yield engines


async def kill(engine: Engine, head: Engine) -> None:
    """Kill a stage; returns once the head has heard of it."""
    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(8):
        assert await head.wait_ended() is not None


@pytest.mark.parametrize("boundaries", [(), (2, 3, 10)], ids=str)
async def test_streams_go_on_with_the_same_tokens_when_a_stage_was_killed(
    models: Callable[..., Path], tmp_path: Path, cache: str, boundaries: tuple[int, ...]
) -> None:
    path = models(**MODEL)
    parts = rings.cut(path, tmp_path, (3, 7, 10))
    async with running(specs(parts, cache, **COMMON)) as engines:
        head = engines[0]
        expected = await undisturbed(path, cache)
        clients = Clients(head)
        await clients.underway()
        await kill(engines[1], head)
        assert (head.lost, head.alive, head.ended) == (1, True, True)
        message = await refused(head)
        told = [line for line in head.log_tail if "broken: the ring is broken" in line]
        assert len(told) == 1, "a break is logged once"
        assert "is loading: the ring is broken: stage 1 (127.0.0.1) was lost" in message
        assert "5 answers wait for it to be made anew" in message
        await asyncio.sleep(0.1)  # what was said before may still be on its way
        said = [dict(stream.texts) for stream in clients.streams]
        await asyncio.sleep(0.1)
        assert [each.texts for each in clients.streams] == said, "somebody spoke without a ring"
        port = head.http_port
        if boundaries:
            others = specs(rings.cut(path, tmp_path, boundaries), cache, **COMMON, epoch=9)
            async with moved(head, others):
                assert await clients.ended() == expected
                assert await Clients(head).ended() == expected
        else:
            await head.regroup(whole(path, head.spec))
            assert await clients.ended() == expected
            assert await Clients(head).ended() == expected
        assert head.http_port == port
        assert not head.ended or boundaries


async def test_a_ring_is_left_for_another_while_it_answers_and_again_when_that_breaks(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    path = models(**MODEL)
    parts = rings.cut(path, tmp_path, (5, 9))
    async with running(specs(parts, cache, **COMMON)) as engines:
        head = engines[0]
        # So long that they do not end before it is all over.
        asks = [{**ask, "max_tokens": 800} for ask in ASKS[:2]]
        expected = await undisturbed(path, cache, asks)
        clients = Clients(head, asks)
        await clients.underway()
        others = specs(rings.cut(path, tmp_path, (2, 6, 8)), cache, **COMMON, epoch=4)
        ended = asyncio.create_task(head.wait_ended())
        async with moved(head, others) as newer:
            await clients.underway()
            assert not ended.done() and not head.ended
            await kill(newer[2], head)
            assert head.lost == 2
            reason = await ended
            assert reason is not None and "stage 2" in reason.message
        await head.regroup(whole(path, head.spec))
        await clients.underway()
        # And back into a ring, from the whole model.
        third = specs(parts, cache, **COMMON, epoch=5)
        async with moved(head, third):
            assert await clients.ended() == expected


async def test_what_fails_while_a_ring_is_replaced_leaves_the_answers_waiting(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    path, stranger = models(**MODEL), models(layers=10)
    parts = rings.cut(path, tmp_path, (5, 9))
    async with running(specs(parts, cache, **COMMON)) as engines:
        head = engines[0]
        expected = await undisturbed(path, cache)
        clients = Clients(head)
        await clients.underway()
        good = whole(path, head.spec)
        # What cannot be is refused before anything is given up.
        for bad, kind, said in (
            (whole(tmp_path / "no.gguf", head.spec), ModelError, "no.gguf"),
            (whole(stranger, head.spec), ModelError, "is not of the model"),
            (whole(path, head.spec, slots=3), ConfigError, "keeps its slots: 4, not 3"),
            (whole(path, head.spec, model_name="other"), ConfigError, "keeps its model_name"),
            (msgspec.structs.replace(head.spec, files=()), ConfigError, "takes 2 file"),
        ):
            with pytest.raises(kind, match=said):
                await head.regroup(bad)
            assert not head.ended and head.spec.role == "head"
        await clients.underway(1)
        await kill(engines[1], head)
        with pytest.raises(ModelError, match=r"no\.gguf"):
            await head.regroup(whole(tmp_path / "no.gguf", head.spec))
        assert head.ended and head.alive
        # Its file is well until it is loaded.
        short = tmp_path / "short.gguf"
        short.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ModelError, match="is cut short"):
            await head.regroup(whole(short, head.spec))
        assert head.ended
        # A stage of the next ring dies before it is joined.
        others = specs(rings.cut(path, tmp_path, (4, 8)), cache, **COMMON, epoch=7)
        with pytest.raises(EngineError, match="stage 1"):
            await _joining_with_the_dead(head, others)
        assert head.ended and "answers wait" in await refused(head)
        # It waits for a successor of which nobody will say where it is; then all is otherwise.
        await head.regroup(msgspec.structs.replace(others[0], epoch=8))
        assert not head.ended and head.port
        assert "answers wait" in await refused(head)
        await head.regroup(good)
        assert await clients.ended() == expected


async def _joining_with_the_dead(head: Engine, wanted: list[EngineSpec]) -> None:
    stage = await Engine.start(wanted[1])
    try:
        await head.regroup(wanted[0])
        os.kill(stage.pid, signal.SIGKILL)
        await head.connect("127.0.0.1", stage.port)
        await head.wait_ready()
    finally:
        await stage.stop()


async def test_who_leaves_while_there_is_no_ring_is_gone_at_once(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    path = models(**MODEL)
    parts = rings.cut(path, tmp_path, (5, 9))
    async with running(specs(parts, cache, **COMMON)) as engines:
        head = engines[0]
        expected = await undisturbed(path, cache)
        clients = Clients(head)
        await clients.underway()
        await kill(engines[1], head)
        assert "5 answers wait" in await refused(head)
        for task in (clients.tasks.pop(3), clients.tasks.pop(0)):
            task.cancel()
        async with asyncio.timeout(10):
            while "2 answers wait" not in await refused(head):
                pass
        await head.regroup(whole(path, head.spec))
        async with asyncio.timeout(40):
            await asyncio.gather(*clients.tasks)
        assert [stream.outcome for stream in clients.streams[1:3]] == expected[1:3]


async def test_told_to_stop_while_answers_wait_each_is_told_why(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    parts = rings.cut(models(**MODEL), tmp_path, (5, 9))
    async with running(specs(parts, cache, **COMMON)) as engines:
        clients = Clients(engines[0])
        await clients.underway()
        await kill(engines[1], engines[0])
        async with asyncio.timeout(6):
            await engines[0].stop()
            await asyncio.gather(*clients.tasks)
        assert all("stage 1 (127.0.0.1) was lost" in s.error for s in clients.streams)
        assert not any(stream.done for stream in clients.streams)
        with pytest.raises(CoveyError, match=r"stage 1|ended"):
            await engines[0].regroup(whole(models(**MODEL), engines[0].spec))


def test_only_who_answers_alone_or_leads_a_ring_can_go_over_to_another(
    models: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    path = models(**MODEL)
    head, stage = specs(rings.cut(path, tmp_path, (5, 9)), cache, **COMMON)
    server = RpcServer("there", "::2", 7100, 6)
    spread = msgspec.structs.replace(whole(path, head), servers=(server,))
    head.check_regroup(whole(path, head))
    whole(path, head).check_regroup(head)
    for one, other, said in (
        (stage, head, "cannot go over from stage 1"),
        (head, stage, "cannot go over to stage 1"),
        (spread, head, "cannot go over from the model"),
        (head, spread, "cannot go over to the model"),
        (head, whole(path, head, n_ctx=512), "keeps its n_ctx: 2048, not 512"),
        (head, whole(path, head, http_address="::1"), "keeps its http_address"),
        (head, whole(path, head, http_port=7100), "keeps its http_port: 0, not 7100"),
        (head, msgspec.structs.replace(head, ring="5a"), "ring must be 16 bytes"),
    ):
        with pytest.raises(ConfigError, match=said):
            one.check_regroup(other)


def resident_bytes(engine: Engine) -> int:
    pages = int(Path(f"/proc/{engine.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


async def test_what_the_broken_ring_held_is_free_before_the_agent_hears_of_it(
    tmp_path: Path, cache: str
) -> None:
    shape = tiny.Shape(layers=6, n_embd=320, heads=8, kv_heads=8, feed_forward=1280)
    path = tiny.write_model(tmp_path / "large.gguf", shape=shape)
    parts = rings.cut(path, tmp_path, (4, 5))
    held = parts[0].stat().st_size + parts[2].stat().st_size
    assert held > 30e6
    async with running(specs(parts, cache, **COMMON)) as engines:
        clients = Clients(engines[0], ASKS[:1])
        await clients.underway()
        before = resident_bytes(engines[0])
        await kill(engines[1], engines[0])
        after = resident_bytes(engines[0])
        assert before - after > 0.9 * held
        await engines[0].regroup(whole(path, engines[0].spec))
        await clients.ended()
        assert resident_bytes(engines[0]) < before + 1.5 * path.stat().st_size - held
