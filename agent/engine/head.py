"""The head: a `generation.Model` for asyncio over the engine thread (`engine_thread.py`).

For `head_process.py`, which makes the pipelines, and for the HTTP server, which sees a Model.
Requests are served together (`batching.py`). When the ring breaks, the running generations wait for
another one, and go on; new ones are refused meanwhile. If none comes in time, they raise an
EngineError that names the stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

from agent.engine.chain import Samplers
from agent.engine.draft_model import DraftModel
from agent.engine.engine_thread import EngineThread, HeadLimits, Offer
from agent.engine.generation import (
    Finish,
    GenerationRequest,
    ModelState,
    Sampling,
    Timings,
    Token,
)
from agent.engine.generator import Job
from agent.engine.llama import Weights
from agent.engine.pipeline import Pipeline
from agent.engine.vocabulary import Vocabulary
from agent.errors import CoveyError, EngineError, UsageError

__all__ = ["Head", "HeadGeneration", "HeadLimits"]

# A cancelled generation ends within one turn of the ring, which the ring's own timeouts bound.
_CLOSE_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0

_Item = Token | Finish | CoveyError | None


class _Outbox:
    """What the engine thread says, on its way to an event loop.

    One wake-up of the loop brings all that was said until then: each costs some system calls, and
    has both threads wait for the interpreter.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._items: deque[tuple[Callable[[_Item], None], _Item]] = deque()
        self._posted = False

    def post(self, to: Callable[[_Item], None], item: _Item) -> None:
        """Have `to` called with an item, from any thread; RuntimeError when the loop is closed."""
        self._items.append((to, item))
        if not self._posted:
            self._posted = True
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._posted = False
                raise

    def _deliver(self) -> None:
        # First: what is said from now on needs another call, unless it is taken here already.
        self._posted = False
        while self._items:
            to, item = self._items.popleft()
            to(item)


class HeadGeneration:
    """A running answer (generation.Generation)."""

    def __init__(self, head: Head, request: GenerationRequest, outbox: _Outbox) -> None:
        self._outbox = outbox
        self._tokens: list[Token] = []
        self._over = False
        self._last: Finish | CoveyError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended = asyncio.Event()
        self._head = head
        self.job = Job(request, self._post, self.end, self.release)

    @property
    def finish(self) -> Finish:
        """Why it ended; ValueError before it has."""
        if not isinstance(self._last, Finish):
            raise ValueError("the generation has not ended by itself")
        return self._last

    @property
    def timings(self) -> Timings:
        """What it cost; zeros until its end."""
        return self.job.timings

    async def some(self, timeout_s: float) -> list[Token] | None:
        """Return the tokens that came since the last call (generation.Generation).

        Raises EngineError if the ring breaks and no other takes its place.
        """
        if not self._tokens and not self._over:
            await self._wait(timeout_s)
        if self._tokens or not self._over:
            tokens, self._tokens = self._tokens, []
            return tokens
        # Whoever asks once more is told the same.
        if isinstance(self._last, CoveyError):
            raise self._last
        return None

    async def _wait(self, timeout_s: float) -> None:
        loop = self._outbox.loop
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(timeout_s, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    async def aclose(self) -> None:
        """Cancel what is left and wait until the ring is free of it."""
        self._head.cancel(self)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._ended.wait()

    def _post(self, item: _Item) -> None:
        """Hand an item to the event loop, from the engine thread."""
        try:
            self._outbox.post(self._take, item)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.job.cancelled = True

    def _take(self, item: _Item) -> None:
        if isinstance(item, Token):
            self._tokens.append(item)
        elif not self._over:
            self._over, self._last = True, item
        if self._waiter is not None:
            _wake(self._waiter)

    def end(self, item: _Item) -> None:
        """Deliver the last item, from any thread."""
        self._post(item)

    def release(self) -> None:
        """Say that the ring is free of this generation, from any thread."""
        self._head.released(self)
        with contextlib.suppress(RuntimeError):
            self._outbox.loop.call_soon_threadsafe(self._ended.set)


class Head:
    """A model that answers (generation.Model): first `loading`, `ready` after `start`.

    `weights` are those of a file that knows texts, the last part or the whole model, and must stay
    loaded whatever becomes of a pipeline: its vocabulary is enough. `on_broken` is called from the
    engine thread with the reason, each time that a pipeline breaks.
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
        self._outbox: _Outbox | None = None
        self._thread = EngineThread(self._vocabulary, self._samplers, limits, on_broken)

    def start(
        self, pipeline: Pipeline, draft: DraftModel | None = None,
        free: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Begin to serve over `pipeline`, which the engine thread owns from now on, and `draft`.

        Also to go on after the one before broke or was left. `free` is called when both are closed
        since they broke or are left.
        """
        self._thread.start(Offer(pipeline, draft, free))

    async def leave(self) -> None:
        """Give up the pipeline for another that will be started; answers wait, without an end.

        Raises EngineError when the pipeline does not let go.
        """
        if not await asyncio.to_thread(self._thread.leave, _CLOSE_TIMEOUT_S):
            raise EngineError(f"{self.name} could not leave its ring in time.")

    def missed(self, error: CoveyError) -> None:
        """Hear that the next pipeline could not be made; answers wait for one more, for a while."""
        self._thread.missed(error)

    def give_up(self, error: CoveyError) -> None:
        """Be broken although the engine thread may never come back from llama.cpp; any thread."""
        self._thread.give_up(error)

    def released(self, generation: HeadGeneration) -> None:
        """Hear that the ring is free of a generation, from any thread."""
        self._thread.released(generation.job)

    async def stop(self) -> None:
        """Cancel everything and let the engine thread end; bounded."""
        await asyncio.to_thread(self._thread.stop, _STOP_TIMEOUT_S)

    def tokenize(self, text: str, *, special: bool, around: bool = True) -> tuple[int, ...]:
        """Return the token ids of `text` (generation.Model)."""
        return self._vocabulary.tokenize(text, special=special, around=around)

    def detokenize(self, ids: tuple[int, ...]) -> bytes:
        """Return the bytes of `ids` (generation.Model)."""
        return self._vocabulary.detokenize(ids)

    def labels(self, ids: tuple[int, ...]) -> list[bytes]:
        """Return the bytes of each of `ids` (generation.Model)."""
        return self._vocabulary.labels(ids)

    def prepare(self, sampling: Sampling) -> None:
        """Check how to sample, and make ready what takes long (generation.Model)."""
        self._samplers.prepare(sampling)

    def state(self) -> tuple[ModelState, str]:
        """Return the state and its reason (generation.Model)."""
        return self._thread.state()

    def occupied(self) -> dict[str, float]:
        """Return how many cells the cache has and are taken, and how many requests run and wait.

        What was computed before and is kept counts as taken.
        """
        return self._thread.occupied()

    def generate(self, request: GenerationRequest) -> HeadGeneration:
        """Begin an answer (generation.Model).

        While a ring is replaced it waits with the others: it may be one more answer of a request
        that was there before. The HTTP server refuses new requests by `state`.
        """
        if not self._thread.takes:
            raise EngineError(
                f"{self.name} cannot answer: {self.state()[1]}",
                hint="Ask again when the model is ready.",
            )
        self._check(request)
        if self._outbox is None or self._outbox.loop is not asyncio.get_running_loop():
            self._outbox = _Outbox()
        generation = HeadGeneration(self, request, self._outbox)
        self._thread.add(generation.job)
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
        self._thread.cancel(generation.job)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
