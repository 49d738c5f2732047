"""Many answers at once: batches of all that run go through the pipeline, and tokens are sampled.

For `head.py`, in its engine thread; `batching.py` says what goes into each batch. It knows
pipelines and samplers, not asyncio and not HTTP.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from agent.engine.batching import Schedule
from agent.engine.chain import Samplers
from agent.engine.draft_model import Drafter, DraftModel
from agent.engine.frames import Remove
from agent.engine.generation import Finish, GenerationRequest, Likely, Timings, Token
from agent.engine.kept import patience
from agent.engine.logprobs import logprobs
from agent.engine.pace import Calibration, Measured
from agent.engine.pipeline import Pipeline
from agent.engine.sampler import Sampler
from agent.engine.turns import Batch, Turn, Work
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, UsageError


@dataclass(eq=False)
class Job:
    """A request on its way: `deliver` takes each token, `ended` why there are no more.

    That is an error when the ring broke, and None when it was cancelled, by setting `cancelled`.
    `released` is called last, once no batch has rows of it any more.
    """

    request: GenerationRequest
    deliver: Callable[[Token], None]
    ended: Callable[[Finish | CoveyError | None], None] = lambda _: None
    released: Callable[[], None] = lambda: None
    cancelled: bool = False
    timings: Timings = field(default=Timings(0, 0.0, 0, 0.0))


@dataclass(eq=False)
class _Answer:
    """A job in the schedule; times are those of `perf_counter`."""

    job: Job
    work: Work
    sampler: Sampler
    began: float | None = None
    first: float | None = None
    generated: int = 0
    flying: int = 0
    over: bool = False


class Generator:
    """Runs jobs through a pipeline whose caches hold `context` tokens for all together.

    `n_batch`: rows a batch; `slots`: jobs that run at once; `sequences`: those and the kept ones;
    `guess`: whether rows of guesses fill the ring; `draft` makes some of them.
    """

    def __init__(
        self, pipeline: Pipeline, vocabulary: Vocabulary, *, context: int, n_batch: int,
        slots: int = 1, sequences: int = 1, samplers: Samplers | None = None, guess: bool = True,
        draft: DraftModel | None = None,
    ) -> None:  # fmt: skip
        self._pipeline = pipeline
        self._vocabulary = vocabulary
        self._samplers = samplers or Samplers(vocabulary, context)
        self._context = context
        weights = pipeline.context.weights
        self._schedule = Schedule(
            cells=context, rows=n_batch, slots=slots, sequences=sequences, depth=pipeline.depth,
            reuse=weights.shares_prefixes, guess=guess,
            patience=patience(
                weights.layer_weights, weights.n_embd,
                flash_attention=pipeline.context.limits.flash_attention,
            ),
        )  # fmt: skip
        self._drafter: Drafter | None = None
        if draft is not None and guess:
            self._drafter = Drafter(draft, self._schedule.asking, self._schedule.pace)
        self._slots, self._n_batch = slots, n_batch
        self._answers: dict[Work, _Answer] = {}
        self._flying: deque[tuple[Turn, float]] = deque()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._answers)

    def add(self, job: Job) -> None:
        """Take a job, whose prompt leaves room for an answer."""
        prompt = job.request.prompt
        limit = min(len(prompt) + job.request.max_tokens, self._context)
        work = Work.of(prompt, limit, job.request.priority)
        sampler = self._samplers.make(job.request.sampling, prompt)
        self._answers[work] = _Answer(job, work, sampler)
        self._schedule.add(work)

    def step(self) -> None:
        """Begin a batch, have guesses made, or finish the oldest batch.

        Raises what the pipeline raises.
        """
        for answer in [a for a in self._answers.values() if a.job.cancelled and not a.over]:
            self._end(answer, None)
        turn = self._schedule.next(len(self._flying))
        if turn is not None:
            self._submit(turn)
        elif self._drafter is not None and self._drafter.step(waiting=not self._pipeline.arrived()):
            return
        elif self._flying:
            self._collect()

    def calibrate(self) -> None:
        """Measure what batches of some sizes take, before the first request; some seconds.

        Raises what the pipeline raises.
        """
        if self._drafter is not None:
            self._drafter.calibrate(self._slots)
        links = self._measure(0, ())
        began = time.perf_counter()
        calibration = Calibration(min(self._slots, self._n_batch))
        gone: tuple[Remove, ...] = ()
        while (rows := calibration.next(time.perf_counter() - began)) is not None:
            calibration.add(self._measure(rows, gone))
            gone = tuple(Remove(sequence) for sequence in range(rows))
        links = min(links, self._measure(0, gone), key=lambda each: each.away_s)
        self._schedule.pace.learn(calibration.best, links.away_s)

    def _measure(self, rows: int, operations: tuple[Remove, ...]) -> Measured:
        """Return what a batch of so many sequences' first tokens takes alone."""
        numbers = np.arange(rows, dtype=np.int32)
        zeros, marks = np.zeros(rows, np.int32), np.ones(rows, np.int8)
        before, began = self._pipeline.stats.decode_s, time.perf_counter()
        self._pipeline.submit(Batch(operations, zeros, numbers, zeros, marks))
        self._pipeline.collect()
        own_s = self._pipeline.stats.decode_s - before
        return Measured(rows, own_s, time.perf_counter() - began - own_s)

    def run(self) -> None:
        """Work until all jobs have ended."""
        while self.busy:
            self.step()

    def fail(self, error: CoveyError) -> None:
        """End all jobs with an error; no batch comes back any more."""
        for answer in list(self._answers.values()):
            answer.flying = 0
            if answer.over:
                self._release(answer)
            else:
                self._end(answer, error)

    def _submit(self, turn: Turn) -> None:
        now = time.perf_counter()
        for work in turn.works:
            answer = self._answers[work]
            answer.flying += 1
            if answer.began is None:
                answer.began = now
        before = self._pipeline.stats.decode_s
        self._pipeline.submit(turn.batch)
        # What the first part took: on a ring the others' time is another, but in proportion.
        took_s = self._pipeline.stats.decode_s - before
        self._flying.append((turn, took_s))
        self._schedule.took(turn, took_s)

    def _collect(self) -> None:
        before = self._pipeline.stats.decode_s
        turn, took_s = self._flying.popleft()
        useful = turn.useful()
        self._pipeline.collect(useful)
        own_s = took_s + self._pipeline.stats.decode_s - before
        began = time.perf_counter()
        for wanted in turn.wanted:
            answer = self._answers[wanted.work]
            if not answer.over and not wanted.stale:
                row = wanted.row if useful is None else int(np.searchsorted(useful, wanted.row))
                self._sample(answer, row)
        if self._drafter is not None:
            self._drafter.returned()
        rows = len(turn.batch.tokens)
        # Where all rows are marked nobody has a prompt.
        if rows == len(turn.wanted) and useful is None:
            self._schedule.pace.took(rows, own_s, time.perf_counter() - began)
        for work in turn.works:
            answer = self._answers[work]
            answer.flying -= 1
            if answer.over and not answer.flying:
                self._release(answer)

    def _sample(self, answer: _Answer, row: int) -> None:
        try:
            token = answer.sampler.sample(self._pipeline.context, row)
        except UsageError as error:  # its own grammar; the others go on
            self._end(answer, error)
            return
        if answer.first is None:
            answer.first = time.perf_counter()
        if self._vocabulary.ends(token):
            self._end(answer, Finish.STOP)
            return
        answer.generated += 1
        answer.job.deliver(self._told(answer.job.request, token, row))
        self._schedule.sampled(answer.work, token)
        if answer.work.length == answer.work.limit:
            self._end(answer, Finish.LENGTH)

    def _told(self, request: GenerationRequest, token: int, row: int) -> Token:
        vocabulary = self._vocabulary
        piece = (vocabulary.label if token in request.written else vocabulary.piece)(token)
        if request.logprobs is None:
            return Token(token, piece)
        own, likeliest = logprobs(self._pipeline.context.logits(row), token, request.logprobs)
        likely = tuple(Likely(vocabulary.label(other), chance) for other, chance in likeliest)
        return Token(token, piece, own, likely)

    def _end(self, answer: _Answer, finish: Finish | CoveyError | None) -> None:
        now = time.perf_counter()
        began = now if answer.began is None else answer.began
        first = now if answer.first is None else answer.first
        job = answer.job
        job.timings = Timings(
            len(job.request.prompt), first - began, answer.generated, now - first,
            answer.work.reused, answer.work.drafts.made, answer.work.drafts.right,
        )  # fmt: skip
        answer.over = True
        answer.sampler.close()
        self._schedule.end(answer.work)
        if self._drafter is not None:
            self._drafter.forget(answer.work)
        job.ended(finish)
        if not answer.flying:
            self._release(answer)

    def _release(self, answer: _Answer) -> None:
        del self._answers[answer.work]
        answer.job.released()
