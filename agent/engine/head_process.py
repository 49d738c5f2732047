"""An engine process that is a head, or a whole model, with its HTTP server.

For `process.py`. A ring that breaks ends nothing here: its weights are freed, its answers wait, and
the agent says (`regroup`) with which files, in which ring, the process goes on. What answers rely
on meanwhile, the vocabulary and the templates, is loaded apart and stays. Only a model over
llama.cpp's RPC servers ends with them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from agent.engine.channel import Channel
from agent.engine.head import Head, HeadLimits
from agent.engine.join import Listener
from agent.engine.llama import Weights
from agent.engine.loaded import Loaded, join, model_of
from agent.engine.means import Means
from agent.engine.pipeline import Pipeline, PipelineStats, RingPipeline, WholePipeline
from agent.engine.place import blamed
from agent.engine.serve.app import make_app
from agent.engine.serve.site import serve
from agent.engine.silence import Known
from agent.engine.spec import EngineSpec, Event
from agent.engine.watch import Heard
from agent.errors import CoveyError, ModelError

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

# How long the answers of a broken ring wait to hear of another: the agent has to see what is left
# and plan, but nothing has to be loaded before it says so. In times of `join_timeout_s`.
_WAIT_JOIN_TIMEOUTS = 2.0

_T = TypeVar("_T")


class _Stopped(Exception):
    """The engine was told to stop, or to be something else again, before it was ready."""


async def run_head(spec: EngineSpec, found: Means, channel: Channel) -> None:
    """Serve until told to stop; raises CoveyError when it cannot start.

    A ring that breaks later is reported, and the server goes on to say so until the agent stops the
    process or has it regroup.
    """
    process = _HeadProcess(spec, found, channel)
    with channel.heard() as told:
        try:
            await process.begin(told)
            while not channel.stopped:
                told.clear()
                if (other := channel.regroup()) is not None:
                    await process.regroup(other, told)
                else:
                    await told.wait()
        except _Stopped:
            pass
        except CoveyError as error:
            channel.emit_error("failed", error)
            raise
        finally:
            await process.end()


class _HeadProcess:
    def __init__(self, spec: EngineSpec, found: Means, channel: Channel) -> None:
        self._spec = spec
        self._found = found
        self._channel = channel
        self._model = ""
        self._head: Head | None = None
        self._runner: web.AppRunner | None = None
        self._http_port = 0
        self._stats: list[PipelineStats] = []
        self._serving_since = 0  # as many regroups
        channel.stats = self._told

    async def begin(self, told: asyncio.Event) -> None:
        """Load, serve and join for the first time."""
        spec = self._spec
        if spec.servers:
            await self._begin_spread(spec)
            return
        loaded = await self._unless_stopped(told, asyncio.to_thread(Loaded, spec, self._found))
        self._model = model_of(Path(spec.files[-1]))
        texts = Weights(Path(spec.files[-1]), only_texts=True)
        self._head = self._made(loaded, texts, _WAIT_JOIN_TIMEOUTS * spec.join_timeout_s)
        try:
            await self._join(spec, loaded)
        except _Stopped:
            await self._dropped(loaded)

    async def _begin_spread(self, spec: EngineSpec) -> None:
        from agent.engine.rpc_head import RpcHead

        servers = RpcHead(spec)
        loaded = await servers.load(lambda spread: Loaded(spec, self._found, spread))
        self._head = self._made(loaded, loaded.weights[-1], 0.0)
        await self._serve(spec)
        pipeline = servers.pipeline(loaded.contexts[0])
        servers.watch(self._head)
        self._start(self._head, pipeline, loaded)

    def _made(self, loaded: Loaded, texts: Weights, wait_s: float) -> Head:
        spec, limits = self._spec, loaded.contexts[-1].limits
        return Head(
            spec.model_name, texts,
            HeadLimits(
                limits.n_ctx, limits.n_batch, spec.slots, spec.sequences, spec.drafts != "none",
                wait_s,
            ),
            self._broke,
        )  # fmt: skip

    def _broke(self, error: CoveyError) -> None:
        # By now the agent may have asked for another ring, which is not the one that broke.
        self._channel.emit_error("broken", error, blamed(error), self._serving_since)

    async def regroup(self, spec: EngineSpec, told: asyncio.Event) -> None:
        """Leave what is served, if anything is left of it, and serve another spec's files."""
        if self._head is None:
            return
        try:
            self._spec.check_regroup(spec)
            await asyncio.to_thread(self._check_files, spec)
        except CoveyError as error:
            log.error("not regrouped: %s", error.line())
            self._serving_since = self._channel.regroups
            kept = self._head.state()[0] == "ready"
            self._channel.emit_error("failed" if kept else "broken", error)
            return
        loaded: Loaded | None = None
        try:
            await self._unless_stopped(told, self._head.leave())
            self._spec = spec
            loading = asyncio.to_thread(Loaded, spec, self._means(spec))
            loaded = await self._unless_stopped(told, loading)
            if loaded.contexts[-1].limits.n_ctx != self._head.context:
                raise ModelError(f"{Path(spec.files[-1]).name} has another context than before.")
            await self._join(spec, loaded)
        except _Stopped:
            await self._dropped(loaded)
        except CoveyError as error:
            if loaded is not None:
                await asyncio.to_thread(loaded.close)
            log.error("not regrouped: %s", error.line())
            self._head.missed(error)
            self._channel.emit_error("broken", error, blamed(error))

    def _check_files(self, spec: EngineSpec) -> None:
        for path in map(Path, spec.files):
            if model_of(path) != self._model:
                raise ModelError(f"{path.name} is not of the model that answers go on with.")

    def _means(self, spec: EngineSpec) -> Means:
        """Return what this process may use, as far as the spec wants it: drivers stay as loaded."""
        layers = self._found.gpu_layers if spec.gpu_layers else 0
        return replace(self._found, threads=spec.threads or self._found.threads, gpu_layers=layers)

    async def _dropped(self, loaded: Loaded | None) -> None:
        """Free what is not needed any more, unless all ends here: the system does it faster."""
        if self._channel.stopped:
            raise _Stopped
        if loaded is not None:
            await asyncio.to_thread(loaded.close)

    async def _join(self, spec: EngineSpec, loaded: Loaded) -> None:
        """Take the place in the ring, if there is one, and answer."""
        if self._head is None:
            return
        pipeline: Pipeline
        if spec.role == "whole":
            await self._serve(spec)
            pipeline = WholePipeline(loaded.contexts[0])
        else:
            member = loaded.member(spec)
            listener = Listener(spec.listen, spec.port)
            try:
                await self._serve(spec)
            except BaseException:
                listener.close()
                raise
            self._channel.emit(self._event("listening", loaded, port=listener.port))
            joined = await asyncio.to_thread(
                join, spec, loaded, member, listener, self._channel, self._interrupted
            )
            if joined is None:
                raise _Stopped
            first, last = loaded.contexts
            heard = Heard(spec.links, self._tell_links)
            pipeline = RingPipeline(first, last, member, *joined, heard)
        self._start(self._head, pipeline, loaded)

    def _tell_links(self, links: dict[str, Known]) -> None:
        self._channel.emit(Event("heard", links=links))

    def _start(self, head: Head, pipeline: Pipeline, loaded: Loaded) -> None:
        self._stats.append(pipeline.stats)
        self._serving_since = self._channel.regroups
        head.start(pipeline, loaded.draft, loaded.close)
        self._channel.emit(self._event("ready", loaded, rows=pipeline.rows))

    def _event(self, name: str, loaded: Loaded, *, port: int = 0, rows: str = "") -> Event:
        return Event(
            "listening" if name == "listening" else "ready", port=port, http_port=self._http_port,
            load_s=loaded.load_s, use_extra_bufts=loaded.means.use_extra_bufts,
            runs_on=loaded.means.words, rows=rows,
        )  # fmt: skip

    async def _serve(self, spec: EngineSpec) -> None:
        if self._runner is None and self._head is not None and spec.http_address:
            app = make_app(self._head)
            self._runner, self._http_port = await serve(app, spec.http_address, spec.http_port)

    def _interrupted(self) -> bool:
        return self._channel.stopped or self._channel.wants_regroup

    async def _unless_stopped(self, told: asyncio.Event, work: Coroutine[None, None, _T]) -> _T:
        """Return what `work` returns; raises _Stopped when told to stop, and leaves it behind."""
        working = asyncio.create_task(work)
        while not working.done():
            if self._channel.stopped:
                working.cancel()
                raise _Stopped
            hearing = asyncio.create_task(told.wait())
            await asyncio.wait({working, hearing}, return_when=asyncio.FIRST_COMPLETED)
            hearing.cancel()
            told.clear()
        return working.result()

    async def end(self) -> None:
        """End all answers and the server."""
        if self._head is not None:
            await self._head.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._stats:
            self._channel.emit(Event("stats", stats=self._told()))

    def _told(self) -> dict[str, float]:
        """Return what was done over all pipelines, and what the cache and its users are now."""
        each = [asdict(stats) for stats in self._stats]
        done = {name: sum(stats[name] for stats in each) for name in (each[0] if each else ())}
        return done | (self._head.occupied() if self._head is not None else {})
