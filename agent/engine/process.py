"""An engine process: `python -m agent.engine.process`, told what to be by one JSON line.

It proves llama.cpp (`means.py`), loads its part, joins the ring and works until it is told to
stop, its input ends (the agent died), or the ring breaks. Started by `supervisor.py` alone. Events
are JSON lines on standard output, logs go to standard error (`spec.py` has the types).
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent.engine import means
from agent.engine.calibrate import measure
from agent.engine.channel import STDIN, Channel
from agent.engine.cut import CutOrigin, origin
from agent.engine.frames import Limits
from agent.engine.gguf_file import GgufFile
from agent.engine.join import Dialled, Interrupted, Listener, Patience
from agent.engine.link import Inlet, Membership, Outlet
from agent.engine.means import Means
from agent.engine.purpose import Purpose
from agent.engine.rpc_server import run_rpc_server
from agent.engine.spec import EngineSpec, Event
from agent.errors import CoveyError, ModelError

if TYPE_CHECKING:
    from aiohttp import web

    from agent.engine.draft_model import DraftModel
    from agent.engine.head import Head
    from agent.engine.llama import Context, ContextLimits, Weights
    from agent.engine.pipeline import Pipeline
    from agent.engine.rpc_head import RpcHead
    from agent.engine.rpc_library import Spread

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


class Loaded:
    """The llama.cpp side of an engine: weights and contexts of its file or files."""

    def __init__(self, spec: EngineSpec, found: Means, spread: Spread | None = None) -> None:
        started = time.monotonic()
        self.means = found
        paths = [Path(name) for name in spec.files]
        self.origins: list[CutOrigin | None] = []
        for path in paths:
            with GgufFile(path) as file:  # a damaged file ends here, in one clear line
                self.origins.append(origin(file))

        from agent.engine.llama import Context, Weights

        self.weights: list[Weights] = []
        self.contexts: list[Context] = []
        for index, path in enumerate(paths):
            weights = Weights(
                path, use_extra_bufts=found.use_extra_bufts, gpu_layers=found.gpu_layers,
                arrange=spread.arrange if spread else lambda _: None,
            )  # fmt: skip
            keeps_rows = spec.role == "stage" or (spec.role == "head" and index == 0)
            self.weights.append(weights)
            self.contexts.append(
                Context(weights, self._limits(spec, weights), keeps_rows=keeps_rows)
            )
        self.draft = self._draft(spec) if spec.draft_file else None
        self.load_s = time.monotonic() - started

    def _draft(self, spec: EngineSpec) -> DraftModel:
        from agent.engine.draft_loading import load_draft

        limits = replace(self.contexts[-1].limits, n_seq=spec.slots)
        return load_draft(
            Path(spec.draft_file), self.weights[-1], spec.model_name, limits,
            use_extra_bufts=self.means.use_extra_bufts, gpu_layers=self.means.gpu_layers,
        )  # fmt: skip

    def _limits(self, spec: EngineSpec, weights: Weights) -> ContextLimits:
        from agent.engine.llama import CPU_GRAPH_ROWS, ContextLimits

        n_ctx = spec.n_ctx or weights.train_context
        return ContextLimits(
            n_ctx, min(spec.n_batch, n_ctx), spec.sequences, self.means.threads,
            spec.flash_attention, 0 if self.means.gpu_layers else CPU_GRAPH_ROWS,
        )  # fmt: skip

    def member(self, spec: EngineSpec) -> Membership:
        """Return this engine's place in its ring; ModelError when its files are no parts of one."""
        first, last = self.origins[0], self.origins[-1]
        if first is None or last is None:
            raise ModelError(
                f"{Path(spec.files[0]).name} was not cut from a model.",
                hint="A ring takes parts that `agent` has cut.",
            )
        if first.model_sha256 != last.model_sha256:
            raise ModelError("the head's two parts were cut from different models.")
        if spec.role == "head" and (first.start != 0 or last.stop != last.layers):
            raise ModelError("the head needs the first and the last layers of the model.")
        context = self.contexts[0]
        limits = Limits(context.weights.n_embd, context.limits.n_batch, context.limits.n_seq)
        return Membership(
            bytes.fromhex(spec.ring),
            spec.epoch,
            spec.stage,
            spec.stages,
            limits,
            spec.rows,
            bytes.fromhex(first.model_sha256),
            spec.silence_s,
            spec.least_silence_s,
        )

    def boundaries(self) -> tuple[int, int]:
        """Return the layer with which frames come in, and that with which they leave."""
        first, last = self.origins[0], self.origins[-1]
        if first is None or last is None:
            raise ValueError("only parts have boundaries")
        return last.start, first.stop


def _join(
    spec: EngineSpec, loaded: Loaded, member: Membership, listener: Listener, channel: Channel
) -> tuple[Inlet, Outlet] | None:
    """Meet both neighbours; None when the engine was told to stop meanwhile."""
    while (successor := channel.successor()) is None:
        if channel.wait(1.0):
            return None
    entering, leaving = loaded.boundaries()
    patience = Patience(time.monotonic() + spec.join_timeout_s, channel.poll)
    dialled: Dialled | None = None
    try:
        # First dial without waiting for the answer, then answer: in a ring everybody waits else.
        dialled = Dialled(member, leaving, spec.listen, successor, patience)
        inlet = listener.accept(member, entering, spec.predecessor, patience)
        outlet = dialled.finish(patience)
        outlet.ping()
        if member.row_type is None:
            # However late the neighbours came, this takes its own few seconds.
            bandwidth = measure(inlet, outlet, replace(patience, deadline=math.inf))
            outlet.types = replace(outlet.types, bandwidth=bandwidth)
    except BaseException as error:
        if dialled is not None:
            dialled.close()
        if isinstance(error, Interrupted):
            return None
        raise
    finally:
        listener.close()
    log.info("rows go to %s as %s", outlet.name, outlet.types)
    return inlet, outlet


def run_stage(spec: EngineSpec, found: Means, channel: Channel) -> None:
    """Be a middle stage until told to stop; raises CoveyError when it fails or the ring breaks."""
    from agent.engine.stage import Stage

    try:
        loaded = Loaded(spec, found)
        member = loaded.member(spec)
        listener = Listener(spec.listen, spec.port)
        channel.emit(
            Event(
                "listening",
                port=listener.port,
                load_s=loaded.load_s,
                use_extra_bufts=loaded.means.use_extra_bufts,
                runs_on=loaded.means.words,
            )
        )
        joined = _join(spec, loaded, member, listener, channel)
    except CoveyError as error:
        channel.emit_error("failed", error)
        raise
    if joined is None:
        return
    inlet, outlet = joined
    channel.emit(Event("ready", rows=str(outlet.types)))
    stage = Stage(loaded.contexts[0], member, inlet, outlet)
    try:
        stage.run(STDIN, channel.poll)
    except CoveyError as error:
        channel.emit_error("broken", error)
        raise
    finally:
        channel.emit(Event("stats", stats={**asdict(stage.stats)}))


async def run_head(spec: EngineSpec, found: Means, channel: Channel) -> None:
    """Be the head, or the whole model, with its HTTP server, until told to stop.

    Raises CoveyError when it cannot start. A ring that breaks later is reported, and the server
    goes on to say so until the agent stops the process.
    """
    import asyncio  # a stage does without its 7 MB

    from agent.engine.head import Head, HeadLimits
    from agent.engine.serve.app import make_app
    from agent.engine.serve.site import serve

    runner: web.AppRunner | None = None
    head: Head | None = None
    pipeline: Pipeline | None = None
    servers: RpcHead | None = None
    try:
        if spec.servers:
            from agent.engine.rpc_head import RpcHead

            servers = RpcHead(spec)
            loaded = await servers.load(lambda spread: Loaded(spec, found, spread))
        else:
            loaded = await asyncio.to_thread(Loaded, spec, found)
        limits = loaded.contexts[-1].limits
        head = Head(
            spec.model_name,
            loaded.weights[-1],
            HeadLimits(
                limits.n_ctx, limits.n_batch, spec.slots, spec.sequences, spec.drafts != "none"
            ),
            lambda error: channel.emit_error("broken", error),
        )
        listener = None if spec.role == "whole" else Listener(spec.listen, spec.port)
        http_port = 0
        if spec.http_address:
            runner, http_port = await serve(make_app(head), spec.http_address, spec.http_port)
        if listener is not None:
            channel.emit(
                Event(
                    "listening",
                    port=listener.port,
                    http_port=http_port,
                    load_s=loaded.load_s,
                    use_extra_bufts=loaded.means.use_extra_bufts,
                    runs_on=loaded.means.words,
                )
            )
        if servers is not None:
            pipeline = servers.pipeline(loaded.contexts[0])
            servers.watch(head)
        else:
            pipeline = await asyncio.to_thread(_pipeline, spec, loaded, listener, channel)
        if pipeline is None:
            return
        head.start(pipeline, loaded.draft)
        channel.emit(
            Event(
                "ready",
                http_port=http_port,
                load_s=loaded.load_s,
                use_extra_bufts=loaded.means.use_extra_bufts,
                runs_on=loaded.means.words,
                rows=pipeline.rows,
            )
        )
        await channel.until_stopped()
    except CoveyError as error:
        channel.emit_error("failed", error)
        raise
    finally:
        if head is not None:
            await head.stop()
        if runner is not None:
            await runner.cleanup()
        if pipeline is not None:
            channel.emit(Event("stats", stats={**asdict(pipeline.stats)}))


def _pipeline(
    spec: EngineSpec, loaded: Loaded, listener: Listener | None, channel: Channel
) -> Pipeline | None:
    from agent.engine.pipeline import RingPipeline, WholePipeline

    if listener is None:
        return WholePipeline(loaded.contexts[0])
    member = loaded.member(spec)
    joined = _join(spec, loaded, member, listener, channel)
    if joined is None:
        return None
    first, last = loaded.contexts
    return RingPipeline(first, last, member, *joined)


def _purpose(spec: EngineSpec) -> Purpose:
    """Return what the engine's model is for; rings are for text alone."""
    if spec.role != "whole":
        return "text"
    with GgufFile(Path(spec.files[0])) as file:
        return file.purpose


def _die_with_agent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _serve(spec: EngineSpec, purpose: Purpose, found: Means, channel: Channel) -> None:
    import asyncio

    if purpose == "text":
        asyncio.run(run_head(spec, found, channel))
    else:
        from agent.engine.embedding_process import run_embedder

        asyncio.run(run_embedder(spec, purpose, found, channel))


def main() -> int:
    """Run one engine; the exit code is 0 when it was stopped, else that of its error."""
    _die_with_agent()
    # A terminal's Ctrl-C reaches every process of the group: the agent alone decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(
        level=os.environ.get("COVEY_ENGINE_LOG", "INFO"),
        stream=sys.stderr,
        format="%(levelname)s %(name)s: %(message)s",
    )
    channel = Channel()
    code = 0
    try:
        try:
            spec = channel.read_spec()
            purpose = _purpose(spec)
            # Before anything imports llama.cpp: that alone loads the drivers that are not hidden.
            found = means.find(spec)
        except CoveyError as error:
            channel.emit_error("failed", error)
            raise
        if spec.role == "stage":
            run_stage(spec, found, channel)
        elif spec.role == "rpc-server":
            run_rpc_server(spec, found, channel)
        else:
            _serve(spec, purpose, found, channel)
    except CoveyError as error:
        log.error("%s", error.line())
        code = error.exit_code
    sys.stderr.flush()
    # llama.cpp's threads may still compute; the system frees everything faster than they end.
    os._exit(code)


if __name__ == "__main__":
    main()
