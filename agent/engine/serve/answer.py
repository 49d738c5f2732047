"""One answer as it comes: from a generation's tokens to text that may be sent.

Used by `app.py`. It owns the generation: however the iteration ends (finished, stop string,
client gone, error, cancelled), the ring is freed. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from agent.engine.generation import Generation, Timings, Token
from agent.engine.serve.openai import FinishReason
from agent.engine.serve.text import StopMatcher, Utf8Stream
from agent.errors import CoveyError

_log = logging.getLogger(__name__)

# How often the caller gets to look whether its client is still there while no token comes.
POLL_S = 0.1
# Freeing the ring is a message to the stages; if it takes longer, the ring's supervisor acts.
CLOSE_TIMEOUT_S = 10.0


class Answer:
    """Iterate `texts()` once, inside `contextlib.aclosing`; `reason` and `tokens` tell the rest."""

    def __init__(self, generation: Generation, stops: Sequence[str]) -> None:
        self._generation = generation
        self._characters = Utf8Stream()
        self._matcher = StopMatcher(stops)
        self.tokens = 0
        self.reason: FinishReason = "stop"

    @property
    def timings(self) -> Timings:
        """What the generation has cost."""
        return self._generation.timings

    async def texts(self) -> AsyncGenerator[str, None]:
        """Yield text, never cut inside a character; "" when there is none for POLL_S or a token.

        Raises what the generation raises (EngineError when the ring breaks).
        """
        tokens = aiter(self._generation)
        pending: asyncio.Task[Token | None] | None = None
        try:
            while True:
                if pending is None:
                    pending = asyncio.create_task(_next(tokens))
                await asyncio.wait({pending}, timeout=POLL_S)
                if not pending.done():
                    yield ""
                    continue
                token, pending = pending.result(), None
                if token is None:
                    break
                self.tokens += 1
                text = self._matcher.push(self._characters.push(token.piece))
                if self._matcher.matched is not None:
                    await self._close()  # the ring is free before the last text is on its way
                    yield text
                    return
                yield text
            self.reason = self._generation.finish.value
            yield self._matcher.flush()
        finally:
            if pending is not None:
                await _cancel(pending)
            await self._close()

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._generation.aclose()
        except (CoveyError, TimeoutError) as error:
            # The answer is complete or its own error is on its way; the ring's supervisor acts.
            _log.warning("closing a generation failed error=%r", error)


async def _cancel(task: asyncio.Task[Token | None]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=CLOSE_TIMEOUT_S)
    if task.done() and not task.cancelled():
        task.exception()  # it ended by itself at the same moment; nobody waits for it any more


async def _next(tokens: AsyncIterator[Token]) -> Token | None:
    return await anext(tokens, None)
