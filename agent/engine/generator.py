"""One answer after another: prefill, sample, decode, until the model or the limits end it.

For `head.py`, in its engine thread. It knows pipelines and samplers, not asyncio and not HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from agent.engine.frames import Remove
from agent.engine.generation import Finish, GenerationRequest, Timings, Token
from agent.engine.pipeline import Batch, Pipeline
from agent.engine.sampler import Sampler
from agent.engine.vocabulary import Vocabulary

# One request after another needs one sequence.
_SEQUENCE = 0


@dataclass(eq=False)
class Job:
    """A request on its way: `deliver` takes each token; setting `cancelled` ends it within one."""

    request: GenerationRequest
    deliver: Callable[[Token], None]
    cancelled: bool = False
    timings: Timings = field(default=Timings(0, 0.0, 0, 0.0))


class Generator:
    """Runs jobs through a pipeline whose context holds `context` tokens, `n_batch` rows a batch."""

    def __init__(
        self, pipeline: Pipeline, vocabulary: Vocabulary, *, context: int, n_batch: int
    ) -> None:
        self._pipeline = pipeline
        self._vocabulary = vocabulary
        self._context = context
        self._n_batch = n_batch

    def run(self, job: Job) -> Finish | None:
        """Generate, and say why it ended: None when it was cancelled.

        The sequence is left in the caches; call `clear` next. Raises what the pipeline raises.
        """
        began = time.perf_counter()
        prompt = job.request.prompt
        if not self._prefill(job, prompt):
            return None
        ready = time.perf_counter()
        generated = 0
        room = min(job.request.max_tokens, self._context - len(prompt))
        sampler = Sampler(job.request.sampling, self._vocabulary.size, prompt)
        try:
            while True:
                token = sampler.sample(self._pipeline.context)
                if self._vocabulary.ends(token):
                    return Finish.STOP
                generated += 1
                job.deliver(Token(token, self._vocabulary.piece(token)))
                if generated == room:
                    return Finish.LENGTH
                if job.cancelled:
                    return None
                self._pipeline.submit(self._step(token, len(prompt) + generated - 1))
                self._pipeline.collect()
        finally:
            sampler.close()
            ended = time.perf_counter()
            job.timings = Timings(len(prompt), ready - began, generated, ended - ready)

    def _prefill(self, job: Job, prompt: tuple[int, ...]) -> bool:
        """Feed the prompt in chunks, several under way; False when the job was cancelled."""
        pipeline = self._pipeline
        tokens = np.array(prompt, np.int32)
        for start in range(0, len(tokens), self._n_batch):
            if job.cancelled:
                break
            chunk = tokens[start : start + self._n_batch]
            if pipeline.in_flight == pipeline.depth:
                pipeline.collect()
            pipeline.submit(self._chunk(chunk, start, is_last=start + len(chunk) == len(tokens)))
        while pipeline.in_flight:
            pipeline.collect()
        return not job.cancelled

    @staticmethod
    def _chunk(
        tokens: np.ndarray[tuple[int], np.dtype[np.int32]], start: int, *, is_last: bool
    ) -> Batch:
        count = len(tokens)
        outputs = np.zeros(count, np.int8)
        outputs[-1] = is_last
        positions = np.arange(start, start + count, dtype=np.int32)
        return Batch((), tokens, np.full(count, _SEQUENCE, np.int32), positions, outputs)

    @staticmethod
    def _step(token: int, position: int) -> Batch:
        return Batch(
            (),
            np.array([token], np.int32),
            np.array([_SEQUENCE], np.int32),
            np.array([position], np.int32),
            np.ones(1, np.int8),
        )

    def clear(self) -> None:
        """Forget the sequence on all stages, by an operation in the order of the frames."""
        self._pipeline.submit(Batch((Remove(_SEQUENCE),)))
        while self._pipeline.in_flight:
            self._pipeline.collect()
