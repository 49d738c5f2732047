"""One answer as it comes: from a generation's tokens to text that may be sent.

Used by `deliver.py`. It owns the generation: however the iteration ends (finished, stop string,
client gone, error, cancelled), the ring is freed. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from agent.engine.generation import Generation, Timings, Token
from agent.engine.serve.forms import Said
from agent.engine.serve.openai import FinishReason
from agent.engine.serve.text import StopMatcher, Utf8Stream
from agent.engine.serve.tools import Call, CallReader
from agent.errors import CoveyError

_log = logging.getLogger(__name__)

# How often the caller gets to look whether its client is still there while no token comes.
POLL_S = 0.1
# Freeing the ring is a message to the stages; if it takes longer, the ring's supervisor acts.
CLOSE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Piece:
    """The next text of an answer, the tokens that begin in it, calls of tools; all may be empty."""

    text: str = ""
    tokens: tuple[Said, ...] = ()
    calls: tuple[Call, ...] = ()


class Answer:
    """Iterate `pieces()` once, inside `contextlib.aclosing`.

    `reason`, `stop` and `tokens` tell the rest.

    `begin` begins the generation when the iteration begins. `reader` finds calls of tools.
    """

    def __init__(
        self,
        begin: Callable[[], Generation],
        stops: Sequence[str],
        reader: CallReader | None = None,
    ) -> None:
        self._begin = begin
        self._generation: Generation | None = None
        self._characters = Utf8Stream()
        self._matcher = StopMatcher(stops)
        self._reader = reader
        self._held: deque[Said] = deque()
        self._heard = self._sent = 0  # characters
        self.tokens = 0
        self.reason: FinishReason = "stop"

    @property
    def timings(self) -> Timings:
        """What the generation has cost."""
        return self._generation.timings if self._generation else Timings(0, 0.0, 0, 0.0)

    @property
    def stop(self) -> str | None:
        """The stop string that ended it, None if anything else did."""
        return self._matcher.matched if self.reason == "stop" else None

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield text, never cut inside a character; an empty piece when POLL_S passed without.

        Raises what `begin` raises, and the generation (EngineError when the ring breaks).
        """
        self._generation = generation = self._begin()
        try:
            while (tokens := await generation.some(POLL_S)) is not None:
                if not tokens:
                    yield Piece()
                for token in tokens:
                    piece = self._piece(self._push(token))
                    if self._over:
                        await self._close()  # the ring is free before the last text is on its way
                        yield piece
                        yield self._last()
                        return
                    yield piece
            self.reason = generation.finish.value
            yield self._last()
        finally:
            await self._close()

    def _push(self, token: Token) -> str:
        self.tokens += 1
        if token.logprob is not None:
            self._held.append(Said(token, self._heard))
        text = self._characters.push(token.piece)
        self._heard += len(text)
        return self._matcher.push(text)

    @property
    def _over(self) -> bool:
        """Whether no more tokens are wanted."""
        return self._matcher.matched is not None or (self._reader is not None and self._reader.done)

    def _piece(self, text: str) -> Piece:
        """Return text with the tokens that begin in it, or before it and are still to be told."""
        self._sent += len(text)
        told = []
        while self._held and self._held[0].offset < self._sent:
            told.append(self._held.popleft())
        if self._reader is None:
            return Piece(text, tuple(told))
        said, calls = self._reader.push(text)
        return Piece(said, tuple(told), calls)

    def _last(self) -> Piece:
        """Return what was held back."""
        text = self._matcher.flush()
        # Also those whose character was cut off, but not those of a stop string.
        told = () if self._matcher.matched is not None else tuple(self._held)
        if self._reader is None:
            return Piece(text, told)
        said, calls = self._reader.push(text)
        rest, more = self._reader.flush()
        if self._reader.found and self.reason == "stop":
            self.reason = "tool_calls"
        return Piece(said + rest, told, calls + more)

    async def _close(self) -> None:
        if self._generation is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._generation.aclose()
        except (CoveyError, TimeoutError) as error:
            # The answer is complete or its own error is on its way; the ring's supervisor acts.
            _log.warning("closing a generation failed error=%r", error)


async def together(answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Piece | None], None]:
    """Yield the pieces of several answers to one prompt, with whose they are; None at its end.

    The others begin when the first has said something: then its prompt is there for all. Iterate
    inside `contextlib.aclosing`. Raises what the first one to fail raises; the others are closed.
    """
    if len(answers) == 1:
        async with aclosing(answers[0].pieces()) as pieces:
            async for piece in pieces:
                yield 0, piece
        yield 0, None
        return
    queue: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue(len(answers))
    begun = asyncio.Event()

    async def pump(index: int, answer: Answer) -> None:
        if index:
            await begun.wait()
        try:
            async with aclosing(answer.pieces()) as said:
                async for piece in said:
                    if answer.tokens:
                        begun.set()
                    await queue.put((index, piece))
        except Exception as error:
            await queue.put((index, error))
        else:
            begun.set()
            await queue.put((index, None))

    pumps = [asyncio.create_task(pump(*each)) for each in enumerate(answers)]
    try:
        left = len(answers)
        while left:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            left -= item is None
            yield index, item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.wait(pumps, timeout=CLOSE_TIMEOUT_S)
