"""An engine process whose model makes embeddings or ranks: loaded whole, served until told to stop.

What `process.py` runs for such a model.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from aiohttp import web

from agent.engine.channel import Channel
from agent.engine.embedder import Embedder, pooled_context
from agent.engine.gguf_file import GgufFile
from agent.engine.llama import Weights
from agent.engine.means import Means
from agent.engine.purpose import ENCODER_CONTEXT, POOLING_MEAN, POOLINGS, Purpose
from agent.engine.serve.embeddings import make_app
from agent.engine.serve.site import serve
from agent.engine.spec import EngineSpec, Event
from agent.errors import CoveyError, ModelError

# Tokens of texts that share a batch: rows are masked from those of others, but masks take time too;
# with twice as many a CPU does a tenth fewer texts a second.
_SHARED_ROWS = 256
# Texts in a batch: that many of four tokens.
_SEQUENCES = 64
# The last matrix of a model for ranks; some have the one, some both.
_RANKING = ("cls.output.weight", "cls.weight")


class _Loaded:
    """The model, and a context in which a text of `longest` tokens is one batch."""

    def __init__(self, spec: EngineSpec, found: Means) -> None:
        started = time.monotonic()
        path = Path(spec.files[0])
        with GgufFile(path) as file:
            pooling = _pooling(file)
        self.means = found
        weights = Weights(path, use_extra_bufts=found.use_extra_bufts, gpu_layers=found.gpu_layers)
        self.longest = min(spec.n_ctx or ENCODER_CONTEXT, weights.train_context)
        self.rows = min(spec.n_batch, _SHARED_ROWS)
        self.context = pooled_context(
            weights, pooling, rows=max(self.rows, self.longest), sequences=_SEQUENCES,
            threads=self.means.threads,
        )  # fmt: skip
        self.load_s = time.monotonic() - started


def _pooling(file: GgufFile) -> int:
    """Return how to pool; ModelError for what llama.cpp would die of, or rank at random."""
    # An encoder that does not say it: the mean, as sentence-transformers has it.
    pooling = file.pooling or POOLING_MEAN
    if pooling not in POOLINGS:
        raise ModelError(f"{file.name} pools in a way that is not known ({pooling}).")
    if file.purpose == "ranks" and not any(map(file.tensor, _RANKING)):
        raise ModelError(
            f"{file.name} says that it ranks, but has no {' nor '.join(_RANKING)}.",
            hint="Convert it again with a current llama.cpp.",
        )
    return pooling


async def run_embedder(spec: EngineSpec, purpose: Purpose, found: Means, channel: Channel) -> None:
    """Load and serve until told to stop; raises CoveyError when it cannot start."""
    runner: web.AppRunner | None = None
    embedder: Embedder | None = None
    try:
        loaded = await asyncio.to_thread(_Loaded, spec, found)
        embedder = Embedder(
            spec.model_name, purpose, loaded.context, longest=loaded.longest, rows=loaded.rows,
            on_broken=lambda error: channel.emit_error("broken", error),
        )  # fmt: skip
        channel.stats = embedder.told
        http_port = 0
        if spec.http_address:
            app = make_app(embedder)
            runner, http_port = await serve(app, spec.http_address, spec.http_port, cancels=True)
        channel.emit(
            Event(
                "ready",
                http_port=http_port,
                load_s=loaded.load_s,
                use_extra_bufts=loaded.means.use_extra_bufts,
                runs_on=loaded.means.words,
            )
        )
        await channel.until_stopped()
    except CoveyError as error:
        channel.emit_error("failed", error)
        raise
    finally:
        if embedder is not None:
            await embedder.stop()
        if runner is not None:
            await runner.cleanup()
        if embedder is not None:
            channel.emit(Event("stats", stats=embedder.told()))
