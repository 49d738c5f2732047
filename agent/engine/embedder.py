"""A model that makes vectors, as an `embedding.Encoder` for asyncio over one thread of its own.

For `embedding_process.py`, which loads the model, and for the HTTP server, which sees only the
Encoder. What waits is packed into batches (`packing.py`); nothing of a text is kept behind its own.
Once llama.cpp fails, whoever waits and every later request get an EngineError.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from agent.engine.embedding import Vectors
from agent.engine.frames import Ints
from agent.engine.generation import ModelState
from agent.engine.llama import Context, ContextLimits, Weights
from agent.engine.packing import Packing, Texts
from agent.engine.pairs import Pairs
from agent.engine.purpose import Purpose
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, EngineError

log = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 5.0


class _Job(Texts):
    """A request: its texts, and the vectors as they come, for `waiter` of `loop`."""

    def __init__(self, texts: Sequence[Sequence[int]], width: int) -> None:
        super().__init__([len(text) for text in texts])
        self.texts: list[Ints] = [np.array(text, np.int32) for text in texts]
        self.vectors: Vectors = np.empty((len(texts), width), np.float32)
        self.missing = len(texts)
        self.loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future[Vectors] = self.loop.create_future()

    def finish(self, error: CoveyError | None = None) -> None:
        """Deliver the vectors or the error, from any thread."""

        def deliver() -> None:
            if self.waiter.done():  # it was cancelled
                return
            if error is None:
                self.waiter.set_result(self.vectors)
            else:
                self.waiter.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self.loop.call_soon_threadsafe(deliver)


class Embedder:
    """Serves a context that leaves one vector a sequence; `stop` closes it.

    `longest`: tokens that one text may have; `rows`: of the texts that share a batch.
    `on_broken` is called once, from the thread, with the reason.
    """

    def __init__(
        self, name: str, purpose: Purpose, context: Context, *, longest: int, rows: int,
        on_broken: Callable[[CoveyError], None] = lambda _: None,
    ) -> None:  # fmt: skip
        weights = context.weights
        self.name = name
        self.purpose: Purpose = purpose
        self.context = longest
        self.width = weights.n_ranks if purpose == "ranks" else weights.n_embd_out
        self.created = int(time.time())
        self.stats: dict[str, float] = {"batches": 0.0, "rows": 0.0, "texts": 0.0, "encode_s": 0.0}
        self._vocabulary = Vocabulary(weights)
        self._pairs = Pairs(weights, self._vocabulary)
        self._context = context
        self._packing: Packing[_Job] = Packing(rows=rows, sequences=context.limits.n_seq)
        self._on_broken = on_broken
        self._broken: CoveyError | None = None
        self._jobs: set[_Job] = set()
        # Guards the packing, the jobs and why there are no more; waited for by the thread alone.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text (embedding.Encoder)."""
        return self._vocabulary.tokenize(text, special=True)

    def pair(self, query: str, document: str) -> tuple[int, ...]:
        """Return the ids of a query with a document (embedding.Encoder)."""
        return self._pairs.tokens(query, document)

    def check(self, ids: Sequence[int]) -> None:
        """Raise UsageError for an unknown id (embedding.Encoder)."""
        self._vocabulary.check(ids)

    def told(self) -> dict[str, float]:
        """Return what was done until now."""
        return dict(self.stats)

    def state(self) -> tuple[ModelState, str]:
        """Return the state and its reason (embedding.Encoder)."""
        return ("ready", "") if self._broken is None else ("broken", self._broken.message)

    async def encode(self, texts: Sequence[Sequence[int]]) -> Vectors:
        """Return the vectors of texts (embedding.Encoder)."""
        longest = max(map(len, texts), default=0)
        if longest > self.context:
            raise ValueError(f"a text of {longest} tokens, where {self.context} are the most")
        job = _Job(texts, self.width)
        with self._changed:
            if self._broken is not None:
                raise self._broken
            self._packing.add(job)
            self._jobs.add(job)
            self._changed.notify()
        try:
            return await job.waiter
        finally:
            with self._changed:
                self._packing.end(job)
                self._jobs.discard(job)

    async def stop(self) -> None:
        """End what runs with an error, and the thread; bounded."""
        self._end(EngineError("the engine is stopping."))
        await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT_S)

    def _end(self, error: CoveyError) -> bool:
        """Be broken from now on; False if that was so already."""
        with self._changed:
            if self._broken is not None:
                return False
            self._broken = error
            jobs, self._jobs = self._jobs, set()
            self._changed.notify()
        for job in jobs:
            job.finish(error)
        return True

    # From here on: the thread.

    def _serve(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._run(batch)
        except CoveyError as error:
            self._break(error)
        except Exception as error:
            log.exception("the engine thread failed")
            self._break(EngineError(f"the engine failed: {error!r}."))
        finally:
            self._context.close()

    def _break(self, error: CoveyError) -> None:
        if self._end(error):
            self._on_broken(error)

    def _next(self) -> list[tuple[_Job, int]] | None:
        with self._changed:
            while self._broken is None and not self._packing.waiting:
                self._changed.wait()
            if self._broken is not None:
                return None
            return self._packing.next()

    def _run(self, batch: list[tuple[_Job, int]]) -> None:
        texts = [job.texts[number] for job, number in batch]
        tokens = np.concatenate(texts)
        sequences = np.repeat(np.arange(len(texts), dtype=np.int32), [len(text) for text in texts])
        positions = np.concatenate([np.arange(len(text), dtype=np.int32) for text in texts])
        started = time.perf_counter()
        self._context.decode_tokens(tokens, sequences, positions, np.ones(len(tokens), np.int8))
        vectors = np.stack([self._context.pooled(n, self.width) for n in range(len(texts))])
        self._context.clear()
        self.stats["encode_s"] += time.perf_counter() - started
        self.stats["batches"] += 1
        self.stats["rows"] += len(tokens)
        self.stats["texts"] += len(texts)
        if self.purpose == "embeddings":
            vectors = _normalised(vectors)
        for (job, number), vector in zip(batch, vectors, strict=True):
            job.vectors[number] = vector
            job.missing -= 1
            if not job.missing:
                finite = np.isfinite(job.vectors).all()
                job.finish(None if finite else EngineError("a text's vector is not finite."))


def pooled_context(
    weights: Weights, pooling: int, *, rows: int, sequences: int, threads: int
) -> Context:
    """Return a context for batches of so many tokens and texts; `pooling` is llama.cpp's number.

    Flash attention passes over what is masked, so that texts that share a batch cost little more
    than alone: a CPU did 75 instead of 26 a second. No part elsewhere has to compute the same.
    """
    # llama.cpp reserves its graph for a multiple of the sequences, and aborts beyond the batch.
    rows = -(-rows // sequences) * sequences
    limits = ContextLimits(rows, rows, sequences, threads, flash_attention=True)
    return Context(weights, limits, keeps_rows=False, pooling=pooling)


def _normalised(vectors: Vectors) -> Vectors:
    """Return vectors of length 1; one of zeros stays one, as llama-server has it."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return result
