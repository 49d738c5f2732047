"""The engine thread: one generator over one pipeline after another, until it is told to stop.

For `head.py`, which asks from the event loop.

    phase    means                                 next
    -----    -----                                 ----
    joining  no pipeline yet                       serving
    serving  a pipeline answers                    waiting: it broke, or is given up for another
    waiting  it is gone; its answers wait          serving; broken: nobody had another in time
    broken   it is gone; its answers have ended    serving
    any      told to stop, or given up for good    over

Answers, their samplers and what was asked meanwhile outlive a pipeline; its contexts, weights and
connections are freed first of all, since the next one needs their memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agent.engine.chain import Samplers
from agent.engine.draft_model import DraftModel
from agent.engine.generation import ModelState
from agent.engine.generator import Generator, Job
from agent.engine.pipeline import Pipeline
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, EngineError

log = logging.getLogger(__name__)

_Phase = Literal["joining", "serving", "waiting", "broken"]


@dataclass(frozen=True)
class HeadLimits:
    """How many tokens the caches hold, rows a batch, and requests that are served at once.

    `sequences` are those of the requests and of the prefixes that are kept. A request alone may use
    the whole context. `guess`: whether what is likely to follow is computed in advance. `wait_s`:
    how long answers wait for another pipeline when theirs broke; 0: they end at once.
    """

    context: int
    n_batch: int
    slots: int = 1
    sequences: int = 1
    guess: bool = True
    wait_s: float = 0.0


@dataclass(frozen=True)
class Offer:
    """A pipeline, its draft model, and what frees the rest of it once both are closed."""

    pipeline: Pipeline
    draft: DraftModel | None = None
    free: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Close both."""
        self.pipeline.close()
        if self.draft is not None:
            self.draft.close()


class EngineThread:
    """Serves jobs; all methods may be called from any thread but their own.

    `on_broken` is called from the engine thread each time that a pipeline broke, and is freed.
    """

    def __init__(
        self, vocabulary: Vocabulary, samplers: Samplers, limits: HeadLimits,
        on_broken: Callable[[CoveyError], None],
    ) -> None:  # fmt: skip
        self._vocabulary = vocabulary
        self._samplers = samplers
        self._limits = limits
        self._on_broken = on_broken
        self._generator: Generator | None = None
        self._lock = threading.Lock()
        self._new: deque[Job] = deque()
        self._jobs: set[Job] = set()  # all that have not been released
        self._offered: Offer | None = None
        self._phase: _Phase = "joining"
        self._lost: CoveyError | None = None  # why there is no pipeline
        self._until = 0.0  # until when answers wait (monotonic), unless
        self._held = False  # another is being made
        self._leaving = self._stopping = self._given_up = False
        self._over: CoveyError | None = None
        self._thread: threading.Thread | None = None
        self._parted = threading.Event()
        self._parted.set()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def state(self) -> tuple[ModelState, str]:
        """Return the state and its reason (generation.Model)."""
        if self._given_up and self._lost is not None:
            return "broken", self._lost.message
        if self._stopping:
            return "broken", "the engine is stopping."
        match self._phase, self._lost:
            case "waiting", CoveyError() as lost:
                count = len(self._jobs)
                answers = "1 answer waits" if count == 1 else f"{count} answers wait"
                return "loading", f"{lost.message.rstrip('.')}; {answers} for it to be made anew."
            case "broken", CoveyError() as lost:
                return "broken", lost.message
            case "joining", _:
                return "loading", "the ring is being joined."
        return "ready", ""

    def occupied(self) -> dict[str, float]:
        """Return how full the cache is, and how many requests run and wait (`Head.occupied`)."""
        generator, new = self._generator, len(self._new)
        taken, running, waiting = generator.occupied if generator is not None else (0, 0, 0)
        return {
            "cells": self._limits.context, "cells_taken": taken, "running": running,
            "waiting": waiting + new,
        }  # fmt: skip

    @property
    def takes(self) -> bool:
        """Whether a job can be added: it is served, or waits with the others."""
        return self._phase in ("serving", "waiting") and not (self._stopping or self._given_up)

    def start(self, offer: Offer) -> None:
        """Begin to serve over a pipeline, which is the thread's from now on, or go on over it."""
        if not self._parted.is_set():
            raise ValueError("the pipeline before was not left")
        self._parted.clear()
        with self._lock:
            self._offered, self._phase = offer, "serving"
            self._lost, self._held = None, False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
        else:
            self._wake()

    def leave(self, timeout_s: float) -> bool:
        """Give the pipeline up, if there is one, and wait until it is freed; False: it took longer.

        Its answers wait from now on, without an end.
        """
        with self._lock:
            self._held = True
            self._leaving = not self._parted.is_set()
            if self._phase == "broken":
                self._phase = "waiting"
        self._wake()
        return self._parted.wait(timeout_s)

    def missed(self, error: CoveyError) -> None:
        """Hear that another pipeline could not be made; the answers wait again, for a while."""
        with self._lock:
            self._lost, self._held = error, False
            self._until = time.monotonic() + self._limits.wait_s
        self._wake()

    def add(self, job: Job) -> None:
        """Take a job."""
        with self._lock:
            self._new.append(job)
            self._jobs.add(job)
        self._wake()
        if self._over is not None:  # it ended in between
            self._fail_new(self._over)

    def cancel(self, job: Job) -> None:
        """Have a job end; one that the thread has not seen ends here."""
        job.cancelled = True
        with self._lock:
            unseen = job in self._new
            if unseen:
                self._new.remove(job)
        if unseen:
            job.ended(None)
            job.released()
        else:
            self._wake()

    def released(self, job: Job) -> None:
        """Hear that no batch has rows of a job any more."""
        with self._lock:
            self._jobs.discard(job)

    def give_up(self, error: CoveyError) -> None:
        """End, although the thread may never come back from llama.cpp."""
        known, lost = self._lost is not None, self._lost or _broken(error)
        self._lost = self._over = lost  # what came first is why
        self._given_up = True
        if not known:
            log.error("given up: %s", lost.message)
            self._on_broken(lost)
        with self._lock:
            jobs = list(self._jobs)
            self._new.clear()
        for job in jobs:
            job.ended(lost)
            job.released()

    def stop(self, timeout_s: float) -> None:
        """End all jobs and the thread, and wait for that."""
        self._stopping = True
        with self._lock:
            new = list(self._new)
        for job in new:
            job.cancelled = True
        self._wake()
        if self._thread is not None and not self._given_up:
            self._thread.join(timeout_s)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._wake_write, b"\0")

    # From here on: the engine thread.

    @property
    def _ending(self) -> bool:
        return self._stopping or self._given_up

    def _run(self) -> None:
        try:
            while (offer := self._next_offer()) is not None:
                self._serve(offer)
        except Exception:
            log.exception("the engine thread failed")
        finally:
            self._over = self._lost or EngineError("the engine is stopping.")
            if self._offered is not None:
                self._offered.close()
            if self._generator is not None:
                self._generator.fail(self._over)
            self._fail_new(self._over)
            self._samplers.close()

    def _next_offer(self) -> Offer | None:
        """Wait for a pipeline; None: the thread shall end."""
        while not self._ending:
            left_s = None
            with self._lock:
                offer, self._offered = self._offered, None
                if offer is not None:
                    return offer
                if self._phase == "waiting" and not self._held:
                    left_s = self._until - time.monotonic()
                    if left_s <= 0:
                        self._phase, left_s = "broken", None
                # Whoever comes later, when another is made already, is not meant.
                failed = self._lost if self._phase == "broken" else None
                count = len(self._new)
            self._take_new(count)
            if self._generator is not None:
                self._generator.sweep()
                if failed is not None:
                    self._generator.fail(failed)
            select.select([self._wake_read], [], [], left_s)
            self._drain_wake()
        return None

    def _serve(self, offer: Offer) -> None:
        """Serve over one pipeline until it breaks, is left, or all is over."""
        broken: CoveyError | None = None
        try:
            generator = self._begin(offer)
            while not self._ending and not self._leaving:
                self._take_new(len(self._new))
                if generator.busy:
                    generator.step()
                elif not generator.measured:
                    generator.measure()
                else:
                    offer.pipeline.rest(self._wake_read)
                    self._drain_wake()
        except CoveyError as error:
            broken = _broken(error)
        except Exception as error:
            log.exception("the engine thread failed")
            broken = EngineError(f"the engine failed: {error!r}.")
            if self._generator is not None:
                self._generator.fail(broken)  # whatever it failed at may be one of them
        self._part(offer, broken)

    def _begin(self, offer: Offer) -> Generator:
        limits = self._limits
        if self._generator is not None:
            self._generator.go_on(offer.pipeline, offer.draft)
            return self._generator
        self._generator = Generator(
            offer.pipeline, self._vocabulary, context=limits.context, n_batch=limits.n_batch,
            slots=limits.slots, sequences=limits.sequences, samplers=self._samplers,
            guess=limits.guess, draft=offer.draft,
        )  # fmt: skip
        self._generator.calibrate(lambda: bool(self._new) or self._ending)
        return self._generator

    def _part(self, offer: Offer, broken: CoveyError | None) -> None:
        """Let a pipeline go."""
        with self._lock:
            if self._leaving:
                broken = None  # whatever became of it meanwhile
            if not self._given_up:
                self._lost = broken
            if not self._ending:
                self._lost = broken or EngineError("the ring is being replaced.")
                self._until = time.monotonic() + self._limits.wait_s
                self._phase = "waiting"
        if self._ending:
            offer.close()
            self._parted.set()
            return
        if self._generator is not None:
            self._generator.lose(broken)
        offer.close()
        offer.free()
        if broken is not None:
            self._on_broken(broken)
        with self._lock:
            self._leaving = False
            self._parted.set()

    def _take_new(self, count: int) -> None:
        """Give the generator so many of the new jobs."""
        for _ in range(count):
            job = self._next_new()
            if job is None:
                return
            if self._generator is None:  # it could not even be begun
                job.ended(self._lost or EngineError("the engine failed."))
                job.released()
                continue
            try:
                self._generator.add(job)
            except CoveyError as error:
                job.ended(error)
                job.released()

    def _next_new(self) -> Job | None:
        with self._lock:
            return self._new.popleft() if self._new else None

    def _drain_wake(self) -> None:
        while select.select([self._wake_read], [], [], 0)[0]:
            os.read(self._wake_read, 4096)

    def _fail_new(self, error: CoveyError) -> None:
        while (job := self._next_new()) is not None:
            job.ended(error)
            job.released()


def _broken(error: CoveyError) -> EngineError:
    """Return what those are told whose ring is gone."""
    if isinstance(error, EngineError):
        return error
    return EngineError(f"the ring is broken: {error.message}", hint=error.hint)
