"""The head: a `generation.Model` for asyncio over a pipeline that runs in one thread of its own.

For `process.py`, which builds the pipeline, and for the HTTP server, which sees only the Model.
Requests are served together (`batching.py`). Once the ring breaks, the running generations and
every later one raise an EngineError that names the stage; a broken head is replaced, never mended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from agent.engine.chain import Samplers
from agent.engine.draft_model import DraftModel
from agent.engine.generation import (
    Finish,
    GenerationRequest,
    ModelState,
    Sampling,
    Timings,
    Token,
)
from agent.engine.generator import Generator, Job
from agent.engine.llama import Weights
from agent.engine.pipeline import Pipeline
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, EngineError, UsageError

log = logging.getLogger(__name__)

# A cancelled generation ends within one turn of the ring, which the ring's own timeouts bound.
_CLOSE_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0

_Item = Token | Finish | CoveyError | None


@dataclass(frozen=True)
class HeadLimits:
    """How many tokens the caches hold, rows a batch, and requests that are served at once.

    `sequences` are those of the requests and of the prefixes that are kept. A request alone may use
    the whole context. `guess`: whether what is likely to follow is computed in advance.
    """

    context: int
    n_batch: int
    slots: int = 1
    sequences: int = 1
    guess: bool = True


class HeadGeneration:
    """A running answer (generation.Generation)."""

    def __init__(self, head: Head, request: GenerationRequest) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[_Item] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._finish: Finish | None = None
        self._head = head
        self.job = Job(request, self._post, self.end, self.release)

    @property
    def finish(self) -> Finish:
        """Why it ended; ValueError before it has."""
        if self._finish is None:
            raise ValueError("the generation has not ended by itself")
        return self._finish

    @property
    def timings(self) -> Timings:
        """What it cost; zeros until the iteration is exhausted."""
        return self.job.timings

    async def __aiter__(self) -> AsyncIterator[Token]:
        """Yield the tokens; raises EngineError if the ring breaks."""
        while True:
            item = await self._items.get()
            if isinstance(item, Token):
                yield item
                continue
            # Whoever iterates once more is told the same.
            self._items.put_nowait(item)
            if isinstance(item, CoveyError):
                raise item
            return

    async def aclose(self) -> None:
        """Cancel what is left and wait until the ring is free of it."""
        self._head.cancel(self)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._ended.wait()

    def _post(self, item: _Item) -> None:
        """Hand an item to the event loop, from the engine thread."""
        try:
            self._loop.call_soon_threadsafe(self._take, item)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.job.cancelled = True

    def _take(self, item: _Item) -> None:
        if isinstance(item, Finish):
            self._finish = item
        self._items.put_nowait(item)

    def end(self, item: _Item) -> None:
        """Deliver the last item, from any thread."""
        self._post(item)

    def release(self) -> None:
        """Say that the ring is free of this generation, from any thread."""
        self._head.released(self)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended.set)


class Head:
    """A model that answers (generation.Model): first `loading`, `ready` after `start`.

    `weights` are those of the part that knows texts: the last, or the whole model.
    `on_broken` is called once, from the engine thread, with the reason.
    """

    def __init__(
        self,
        name: str,
        weights: Weights,
        limits: HeadLimits,
        on_broken: Callable[[CoveyError], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.context = limits.context
        self.created = int(time.time())
        self.chat_template = weights.chat_template
        self._vocabulary = Vocabulary(weights)
        self._samplers = Samplers(self._vocabulary, limits.context)
        self.bos = self._vocabulary.bos
        self.eos = self._vocabulary.eos
        self._limits = limits
        self._on_broken = on_broken
        self._lock = threading.Lock()
        self._waiting: deque[HeadGeneration] = deque()
        self._running: set[HeadGeneration] = set()
        self._broken: CoveyError | None = None
        self._stopping = False
        self._given_up = False
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def start(self, pipeline: Pipeline, draft: DraftModel | None = None) -> None:
        """Begin to serve over `pipeline`, which the engine thread owns from now on, and `draft`."""
        self._thread = threading.Thread(
            target=self._serve, args=(pipeline, draft), name="engine", daemon=True
        )
        self._thread.start()

    def give_up(self, error: CoveyError) -> None:
        """Be broken although the engine thread may never come back from llama.cpp; any thread."""
        self._given_up = True
        self._break(error)
        with self._lock:
            running = list(self._running)
        for generation in running:
            generation.end(self._broken)
            generation.release()

    def released(self, generation: HeadGeneration) -> None:
        """Hear that the ring is free of a generation, from any thread."""
        with self._lock:
            self._running.discard(generation)

    async def stop(self) -> None:
        """Cancel everything and let the engine thread end; bounded."""
        self._stopping = True
        with self._lock:
            waiting = list(self._waiting)
        for generation in waiting:
            generation.job.cancelled = True
        self._wake()
        if self._thread is not None and not self._given_up:
            await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT_S)

    def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Return the token ids of `text` (generation.Model)."""
        return self._vocabulary.tokenize(text, special=special)

    def detokenize(self, ids: tuple[int, ...]) -> bytes:
        """Return the bytes of `ids` (generation.Model)."""
        return self._vocabulary.detokenize(ids)

    def prepare(self, sampling: Sampling) -> None:
        """Check how to sample, and make ready what takes long (generation.Model)."""
        self._samplers.prepare(sampling)

    def state(self) -> tuple[ModelState, str]:
        """Return the state and its reason (generation.Model)."""
        if self._broken is not None:
            return "broken", self._broken.message
        if self._stopping:
            return "broken", "the engine is stopping."
        if self._thread is None:
            return "loading", "the ring is being joined."
        return "ready", ""

    def generate(self, request: GenerationRequest) -> HeadGeneration:
        """Begin an answer (generation.Model)."""
        state, reason = self.state()
        if state != "ready":
            raise EngineError(
                f"{self.name} cannot answer: {reason}", hint="Ask again when the model is ready."
            )
        self._check(request)
        generation = HeadGeneration(self, request)
        with self._lock:
            self._waiting.append(generation)
        self._wake()
        if self._broken is not None:  # it broke in between: the engine thread may be gone
            self._fail_waiting(self._broken)
        return generation

    def _check(self, request: GenerationRequest) -> None:
        if not request.prompt:
            raise UsageError("the prompt is empty.")
        if len(request.prompt) >= self.context:
            raise UsageError(
                f"the prompt has {len(request.prompt)} tokens; {self.name} has room "
                f"for {self.context}, with the answer.",
                hint="Shorten the conversation.",
            )
        if request.max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1, it is {request.max_tokens}.")
        self._vocabulary.check(request.prompt)
        self._samplers.prepare(request.sampling)

    def cancel(self, generation: HeadGeneration) -> None:
        """Have a generation end; one that the engine thread has not seen ends here."""
        generation.job.cancelled = True
        with self._lock:
            unseen = generation in self._waiting
            if unseen:
                self._waiting.remove(generation)
        if unseen:
            generation.end(None)
            generation.release()
        else:
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._wake_write, b"\0")

    # From here on: the engine thread.

    def _serve(self, pipeline: Pipeline, draft: DraftModel | None) -> None:
        limits = self._limits
        generator = Generator(
            pipeline, self._vocabulary, context=limits.context, n_batch=limits.n_batch,
            slots=limits.slots, sequences=limits.sequences, samplers=self._samplers,
            guess=limits.guess, draft=draft,
        )  # fmt: skip
        try:
            generator.calibrate()
            while not self._stopping and not self._given_up:
                while (generation := self._next()) is not None:
                    generator.add(generation.job)
                if generator.busy:
                    generator.step()
                else:
                    pipeline.rest(self._wake_read)
                    self._drain_wake()
        except CoveyError as error:
            self._break(error)
        except Exception as error:
            log.exception("the engine thread failed")
            self._break(EngineError(f"the engine failed: {error!r}."))
        finally:
            over = self._broken or EngineError("the engine is stopping.")
            generator.fail(over)
            self._samplers.close()
            pipeline.close()
            if draft is not None:
                draft.close()
            self._fail_waiting(over)

    def _next(self) -> HeadGeneration | None:
        with self._lock:
            if not self._waiting:
                return None
            generation = self._waiting.popleft()
            self._running.add(generation)
            return generation

    def _drain_wake(self) -> None:
        while select.select([self._wake_read], [], [], 0)[0]:
            os.read(self._wake_read, 4096)

    def _break(self, error: CoveyError) -> None:
        if self._broken is not None:
            return  # what came first is why
        broken = (
            error
            if isinstance(error, EngineError)
            else EngineError(f"the ring is broken: {error.message}", hint=error.hint)
        )
        self._broken = broken
        log.error("broken: %s", broken.message)
        self._on_broken(broken)
        self._fail_waiting(broken)

    def _fail_waiting(self, error: CoveyError) -> None:
        while (generation := self._next()) is not None:
            generation.end(error)
            generation.release()
