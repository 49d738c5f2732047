"""Rings for the tests, and llama.cpp's own answer to compare with."""

from __future__ import annotations

import codecs
import functools
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import llama_cpp
import numpy as np

from agent.engine.cut import write_part
from agent.engine.frames import Limits, Remove, RowType
from agent.engine.generation import Finish, Generation, GenerationRequest, Sampling, Token
from agent.engine.generator import Generator, Job
from agent.engine.gguf_file import GgufFile
from agent.engine.link import Inlet, Lost, Membership, Outlet
from agent.engine.llama import Context, ContextLimits, Weights
from agent.engine.pipeline import Pipeline, RingPipeline, WholePipeline
from agent.engine.stage import Stage
from agent.engine.turns import Batch
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, EngineError

N_CTX = 512
N_BATCH = 32
# One thread: threads that share CPUs with other work wait for each other at every barrier.
SLOTS, SEQUENCES = 4, 8
GREEDY = Sampling(temperature=0.0)
LIMITS = ContextLimits(N_CTX, N_BATCH, SEQUENCES, 1)


def prompt(length: int, seed: int = 1) -> tuple[int, ...]:
    """Return a prompt of random tokens."""
    return tuple(int(token) for token in np.random.default_rng(seed).integers(3, 400, length))


@functools.cache
def reference(
    path: Path, tokens: tuple[int, ...], count: int, *, flash_attention: bool = False
) -> tuple[list[int], list[np.ndarray]]:
    """Return llama.cpp's greedy answer for the whole model, and the logits of each step.

    It goes through llama-cpp-python's own high-level class, which shares no code with the engine.
    """
    model = llama_cpp.Llama(
        str(path), n_ctx=N_CTX, n_batch=N_BATCH, n_ubatch=N_BATCH, n_threads=1, n_threads_batch=1,
        verbose=False, logits_all=False, flash_attn=flash_attention,
    )  # fmt: skip
    try:
        answer, logits = [], []
        model.eval(list(tokens))
        for _ in range(count):
            found = np.array(
                llama_cpp.llama_get_logits_ith(model.ctx, -1)[: model.n_vocab()], np.float32
            )
            logits.append(found)
            answer.append(int(found.argmax()))
            model.eval([answer[-1]])
        return answer, logits
    finally:
        model.close()


def answer(path: Path, prompt: str, count: int) -> str:
    """Return llama.cpp's own greedy answer to a text: `count` tokens, or up to its end."""
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    try:
        ids = model.tokenize(prompt.encode(), special=True)
        tokens, _ = reference(path, tuple(ids), count)
        if model.token_eos() in tokens:
            tokens = tokens[: tokens.index(model.token_eos())]
        # The class pads a piece with zeros.
        pieces = [model._model.token_to_piece(token).rstrip(b"\0") for token in tokens]
    finally:
        model.close()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return "".join(map(decoder.decode, pieces))


def cut(path: Path, folder: Path, boundaries: Sequence[int]) -> list[Path]:
    """Cut a model at these layers; returns its parts in order."""
    with GgufFile(path) as model:
        edges = [0, *boundaries, model.layers]
        return [
            write_part(model, start, stop, folder / f"{path.stem}-{start}-{stop}.gguf").path
            for start, stop in pairwise(edges)
        ]


def generated(
    pipeline: Pipeline, path: Path, prompt: tuple[int, ...], count: int,
    sampling: Sampling = GREEDY,
) -> tuple[list[int], Finish | CoveyError | None]:  # fmt: skip
    """Return the tokens of an answer of `count`, and how it ended; `path` has the vocabulary."""
    weights = Weights(path)
    try:
        tokens: list[Token] = []
        ends: list[Finish | CoveyError | None] = []
        generator = Generator(pipeline, Vocabulary(weights), context=N_CTX, n_batch=N_BATCH)
        generator.add(Job(GenerationRequest(prompt, count, sampling), tokens.append, ends.append))
        generator.run()
        # Each time a schedule of its own, which knows nothing of what the caches hold.
        pipeline.submit(Batch((Remove(0),)))
        pipeline.collect()
        return [token.id for token in tokens], ends[0]
    finally:
        weights.close()


class Tap:
    """A pipeline that keeps a copy of the logits of every batch that asked for some."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._wanted: list[bool] = []
        self.logits: list[np.ndarray] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._pipeline, name)

    def submit(self, batch) -> None:
        self._wanted.append(bool(batch.outputs.any()))
        self._pipeline.submit(batch)

    def collect(self, useful=None) -> None:
        self._pipeline.collect(useful)
        if self._wanted.pop(0):
            self.logits.append(self._pipeline.context.logits().copy())


class Breaking:
    """A pipeline that breaks at its n-th batch of a request, as a ring with a lost stage does."""

    def __init__(self, pipeline: Pipeline, after: int) -> None:
        self._pipeline = pipeline
        self._left = after

    def __getattr__(self, name: str) -> object:
        return getattr(self._pipeline, name)

    def submit(self, batch: Batch) -> None:
        if batch.positions.any():  # what is measured before any request has first positions alone
            if self._left == 0:
                raise EngineError("the ring is broken: stage 2 (fd00::2) was lost.")
            self._left -= 1
        self._pipeline.submit(batch)


@contextmanager
def pipeline(
    path: Path, folder: Path, boundaries: Sequence[int], row_type: RowType | None = RowType.F32,
    silence_s: float = 20.0, graph_rows: int = 0, flash_attention: bool = False,
) -> Iterator[Pipeline]:  # fmt: skip
    """Give the whole model (no boundaries) or a ring of threads, all in this process."""
    each = replace(LIMITS, graph_rows=graph_rows, flash_attention=flash_attention)
    with ExitStack() as stack:
        if not boundaries:
            weights = Weights(path)
            stack.callback(weights.close)
            whole = WholePipeline(Context(weights, each, keeps_rows=False))
            stack.callback(whole.close)
            yield whole
            return
        parts = cut(path, folder, boundaries)
        stages = len(parts) - 1
        contexts = []
        for index, part in enumerate(parts):
            weights = Weights(part)
            stack.callback(weights.close)
            contexts.append(Context(weights, each, keeps_rows=index < stages))
            stack.callback(contexts[-1].close)
        limits = Limits(contexts[0].weights.n_embd, N_BATCH, LIMITS.n_seq)
        members = [
            Membership(
                b"r" * 16, 1, stage, stages, limits, row_type, b"m" * 32, silence_s, silence_s
            )
            for stage in range(stages)
        ]
        pairs = [socket.socketpair() for _ in range(stages)]
        outlets = [Outlet(pairs[stage][0], members[stage], "") for stage in range(stages)]
        inlets = [Inlet(pairs[stage - 1][1], members[stage], "") for stage in range(stages)]
        for stage in range(1, stages):
            stack.enter_context(
                _thread(Stage(contexts[stage], members[stage], inlets[stage], outlets[stage]),
                        inlets[stage], outlets[stage])
            )  # fmt: skip
        ring = RingPipeline(contexts[0], contexts[-1], members[0], inlets[0], outlets[0])
        stack.callback(ring.close)
        yield ring


@contextmanager
def _thread(stage: Stage, inlet: Inlet, outlet: Outlet) -> Iterator[None]:
    read, write = os.pipe()

    def run() -> None:
        try:
            stage.run(read, lambda: True)
        except Lost:
            pass  # the head closed first
        finally:
            inlet.close()
            outlet.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        os.write(write, b"x")
        thread.join(10)
        os.close(read)
        os.close(write)


async def tokens_of(generation: Generation) -> AsyncIterator[Token]:
    """Yield what a running answer says, as it comes."""
    while (some := await generation.some(1.0)) is not None:
        for token in some:
            yield token
