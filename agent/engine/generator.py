"""Many answers at once: batches of all that run go through the pipeline, and tokens are sampled.

For `engine_thread.py`; `batching.py` says what goes into each batch. It knows pipelines and
samplers, not asyncio and not HTTP.

When a pipeline is lost the answers wait for another. What they have said is with the jobs and their
samplers, not in the caches: it is computed again as prompts are, and what was under way was not
sampled yet, so no token comes twice.
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
from agent.engine.generation import Finish, GenerationRequest, Likely, Timings, Token
from agent.engine.kept import patience
from agent.engine.llama import Context
from agent.engine.logprobs import logprobs
from agent.engine.measuring import Measuring
from agent.engine.pipeline import Pipeline
from agent.engine.sampler import Sampler
from agent.engine.turns import Turn, Work
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, EngineError, UsageError

# An answer whose rows were under way each time that so many pipelines in turn were lost, without a
# token of it in between, may be what they are lost by.
_LOSSES_MAX = 3


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
    """A job in the schedule; times are those of `perf_counter`.

    `losses`: how many pipelines were lost with rows of it since its last token.
    """

    job: Job
    work: Work
    sampler: Sampler
    began: float | None = None
    first: float | None = None
    generated: int = 0
    flying: int = 0
    losses: int = 0
    over: bool = False


@dataclass(eq=False)
class _Course:
    """A pipeline, what is decided for it, and the batches under way, each with what it took."""

    pipeline: Pipeline
    schedule: Schedule
    drafter: Drafter | None
    measuring: Measuring
    flying: deque[tuple[Turn, float]] = field(default_factory=deque)
    scheduling_s: float = 0.0
    noted_s: float = 0.0

    def ours_s(self) -> float:
        """Return what our own code has taken since this was asked last (CPU seconds)."""
        before, self.noted_s = self.noted_s, self.pipeline.stats.own_s + self.scheduling_s
        return self.noted_s - before


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
        self._vocabulary = vocabulary
        self._samplers = samplers or Samplers(vocabulary, context)
        self._context = context
        self._n_batch, self._slots, self._sequences = n_batch, slots, sequences
        self._guess = guess
        self._answers: dict[Work, _Answer] = {}
        self._said: list[tuple[Job, Token]] = []
        self._course: _Course | None = self._begun(pipeline, draft)

    def _begun(self, pipeline: Pipeline, draft: DraftModel | None) -> _Course:
        weights = pipeline.context.weights
        schedule = Schedule(
            cells=self._context, rows=self._n_batch, slots=self._slots, sequences=self._sequences,
            depth=pipeline.depth, reuse=weights.shares_prefixes, guess=self._guess,
            patience=patience(
                weights.layer_weights, weights.n_embd,
                flash_attention=pipeline.context.limits.flash_attention,
            ),
        )  # fmt: skip
        drafter: Drafter | None = None
        if draft is not None and self._guess:
            drafter = Drafter(draft, schedule.asking, schedule.pace)
        most = min(self._slots, self._n_batch, self._context)
        return _Course(pipeline, schedule, drafter, Measuring(pipeline, schedule, most, drafter))

    @property
    def occupied(self) -> tuple[int, int, int]:
        """The cells that are taken, and the requests that run and that wait; from any thread."""
        course = self._course
        if course is None:
            return 0, 0, len(self._answers)
        schedule = course.schedule
        return self._context - schedule.free_cells, schedule.running, schedule.waiting

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._answers)

    @property
    def measured(self) -> bool:
        """Whether it is known what batches take; else `measure` while there is nothing to do."""
        return self._here.measuring.over

    @property
    def _here(self) -> _Course:
        if self._course is None:
            raise EngineError("there is no pipeline to work with.")
        return self._course

    def add(self, job: Job) -> None:
        """Take a job, whose prompt leaves room for an answer."""
        prompt = job.request.prompt
        limit = min(len(prompt) + job.request.max_tokens, self._context)
        work = Work.of(prompt, limit, job.request.priority)
        sampler = self._samplers.make(job.request.sampling, prompt)
        self._answers[work] = _Answer(job, work, sampler)
        if self._course is not None:
            self._course.schedule.add(work)

    def step(self) -> None:
        """Begin a batch, have guesses made, or finish the oldest batch.

        Raises what the pipeline raises.
        """
        self.sweep()
        course = self._here
        began = time.thread_time()
        turn = course.schedule.next(len(course.flying))
        course.scheduling_s += time.thread_time() - began
        # Who hears a token works on it, perhaps on the same CPU: where others compute as well,
        # their next batch goes first, and it is heard while they do.
        if turn is None or course.pipeline.depth == 1:
            self._tell()
        if turn is not None:
            self._submit(course, turn)
        elif course.drafter is not None and course.drafter.step(
            waiting=not course.pipeline.arrived()
        ):
            return
        elif course.flying:
            self._collect(course)

    def sweep(self) -> None:
        """End the jobs that were cancelled."""
        for answer in [a for a in self._answers.values() if a.job.cancelled and not a.over]:
            self._end(answer, None)

    def measure(self) -> None:
        """Measure a batch, while there is nothing to do; raises what the pipeline raises."""
        self._here.measuring.step()

    def calibrate(self, waits: Callable[[], bool] = lambda: False) -> None:
        """Measure what batches of some sizes take, before the first request; some seconds.

        Once `waits` says that this one is there it is about one second, and what is left comes at
        idle moments. Raises what the pipeline raises.
        """
        measuring = self._here.measuring
        while not measuring.over:
            hurried = waits()
            if hurried and measuring.known:
                return
            measuring.step(hurried=hurried)

    def lose(self, error: CoveyError | None) -> None:
        """The pipeline is gone, by an error or as planned; the jobs wait for `go_on`.

        No batch comes back. Who was there each time that a pipeline broke ends with the error.
        """
        self._tell()
        self._course = None
        for answer in list(self._answers.values()):
            answer.losses += error is not None and answer.flying > 0
            answer.flying = 0
            if answer.over:
                self._release(answer)
                continue
            answer.work.move()
            if error is not None and answer.losses > _LOSSES_MAX:
                self._end(answer, error)

    def go_on(self, pipeline: Pipeline, draft: DraftModel | None = None) -> None:
        """Go on over another pipeline of the same model, whose caches are empty."""
        self._n_batch = pipeline.context.limits.n_batch
        self._course = self._begun(pipeline, draft)
        for work in self._answers:  # as they came
            self._course.schedule.add(work)

    def run(self) -> None:
        """Work until all jobs have ended."""
        while self.busy:
            self.step()

    def fail(self, error: CoveyError) -> None:
        """End all jobs with an error; no batch comes back any more."""
        self._tell()
        for answer in list(self._answers.values()):
            answer.flying = 0
            if answer.over:
                self._release(answer)
            else:
                self._end(answer, error)

    def _submit(self, course: _Course, turn: Turn) -> None:
        now = time.perf_counter()
        for work in turn.works:
            answer = self._answers[work]
            answer.flying += 1
            if answer.began is None:
                answer.began = now
        before = course.pipeline.stats.decode_s
        course.pipeline.submit(turn.batch)
        # What the first part took: on a ring the others' time is another, but in proportion.
        took_s = course.pipeline.stats.decode_s - before
        course.flying.append((turn, took_s))
        course.schedule.took(turn, took_s)

    def _collect(self, course: _Course) -> None:
        pipeline = course.pipeline
        before = pipeline.stats.decode_s
        turn, took_s = course.flying.popleft()
        useful = turn.useful()
        pipeline.collect(useful)
        own_s = took_s + pipeline.stats.decode_s - before
        began = time.perf_counter()
        for wanted in turn.wanted:
            answer = self._answers[wanted.work]
            if not answer.over and not wanted.stale:
                row = wanted.row if useful is None else int(np.searchsorted(useful, wanted.row))
                self._sample(course, answer, row)
        if course.drafter is not None:
            course.drafter.returned()
        rows, ours_s = len(turn.batch.tokens), course.ours_s()
        # Where all rows are marked nobody has a prompt.
        if rows == len(turn.wanted) and useful is None:
            sampling_s = time.perf_counter() - began
            course.schedule.pace.took(rows, own_s, sampling_s, ours_s)
            course.schedule.pace.rounds.back(rows, time.perf_counter())
        for work in turn.works:
            answer = self._answers[work]
            answer.flying -= 1
            if answer.over and not answer.flying:
                self._release(answer)

    def _sample(self, course: _Course, answer: _Answer, row: int) -> None:
        try:
            token = answer.sampler.sample(course.pipeline.context, row)
        except UsageError as error:  # its own grammar; the others go on
            self._end(answer, error)
            return
        if answer.first is None:
            answer.first = time.perf_counter()
        if self._vocabulary.ends(token):
            self._end(answer, Finish.STOP)
            return
        answer.generated += 1
        answer.losses = 0
        told = self._told(course.pipeline.context, answer.job.request, token, row)
        self._said.append((answer.job, told))
        course.schedule.sampled(answer.work, token)
        if answer.work.length == answer.work.limit:
            self._end(answer, Finish.LENGTH)

    def _told(self, context: Context, request: GenerationRequest, token: int, row: int) -> Token:
        vocabulary = self._vocabulary
        piece = (vocabulary.label if token in request.written else vocabulary.piece)(token)
        if request.logprobs is None:
            return Token(token, piece)
        own, likeliest = logprobs(context.logits(row), token, request.logprobs)
        likely = tuple(Likely(vocabulary.label(other), chance) for other, chance in likeliest)
        return Token(token, piece, own, likely)

    def _tell(self) -> None:
        """Deliver the tokens that were sampled."""
        for job, token in self._said:
            job.deliver(token)
        self._said.clear()

    def _end(self, answer: _Answer, finish: Finish | CoveyError | None) -> None:
        self._tell()
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
        if self._course is not None:
            self._course.schedule.end(answer.work)
            if self._course.drafter is not None:
                self._course.drafter.forget(answer.work)
        job.ended(finish)
        if not answer.flying:
            self._release(answer)

    def _release(self, answer: _Answer) -> None:
        del self._answers[answer.work]
        answer.job.released()
