"""From answers to a client: as one object, or as a stream of events.

A shell, used by `app.py`. A stream's status line is sent with the first token (or after
KEEP_ALIVE_S), so that a ring that breaks before it is still an ordinary HTTP error, which the
gateway can try elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from aiohttp import web

from agent.engine.serve import openai, sse
from agent.engine.serve.answer import Answer, together
from agent.engine.serve.forms import Choice, Form
from agent.engine.serve.http import reply, where
from agent.engine.serve.schema import Ask
from agent.engine.serve.tools import CallReader
from agent.errors import CoveyError, EngineError

_log = logging.getLogger(__name__)

# Proxies commonly close a connection that is silent for 30 or 60 s.
KEEP_ALIVE_S = 20.0
# A client that reads nothing for so long holds the ring back from the others.
WRITE_TIMEOUT_S = 30.0


class DisconnectedError(Exception):
    """The client has closed its connection."""


@dataclass(frozen=True)
class Job:
    """One request on its way to the ring; `echo` is said before each answer.

    `reader` makes what finds calls of tools; the control tokens in `written` are its marks.
    """

    ask: Ask
    form: Form
    prompt: tuple[int, ...]
    max_tokens: int
    echo: str = ""
    reader: Callable[[], CallReader] | None = None
    written: frozenset[int] = frozenset()


async def whole(request: web.Request, job: Job, answers: Sequence[Answer]) -> web.Response:
    """Return the answers in one piece; raises DisconnectedError when the client leaves."""
    choices = [Choice([job.echo]) for _ in answers]
    async with aclosing(together(answers)) as pieces:
        async for index, piece in pieces:
            _check_present(request)
            if piece is None:
                choices[index].reason = answers[index].reason
                choices[index].stop = answers[index].stop
            else:
                choices[index].parts.append(piece.text)
                choices[index].tokens += piece.tokens
                choices[index].calls += piece.calls
    cost = openai.together([answer.timings for answer in answers])
    _log_done(job, answers)
    return reply(
        job.form.whole(
            choices, {"usage": _usage(job, answers), "timings": openai.timings(cost)}
        )
    )  # fmt: skip


async def stream(request: web.Request, job: Job, answers: Sequence[Answer]) -> web.StreamResponse:
    """Send the answers as they come; a client that leaves ends them."""
    events = _EventStream(request)
    form = job.form
    called = [0] * len(answers)
    opening = {index: _opening(form, index, job.echo) for index in range(len(answers))}
    try:
        async with aclosing(together(answers)) as pieces:
            async for index, piece in pieces:
                _check_present(request)
                answer = answers[index]
                if piece is None:
                    extra = {"timings": openai.timings(answer.timings)}
                    last = form.end(index, answer.reason, extra, answer.stop)
                    await events.send(*opening.pop(index, ()), last)
                    continue
                if answer.tokens and index in opening:
                    await events.send(*opening.pop(index))
                if piece.text or piece.tokens:
                    await events.send(form.delta(index, piece.text, piece.tokens))
                for call in piece.calls:
                    await events.send(*form.called(index, called[index], call))
                    called[index] += 1
                await events.keep_alive()
        if job.ask.include_usage:
            await events.send(form.counted(_usage(job, answers)))
        await events.write(sse.DONE)
        _log_done(job, answers)
    except DisconnectedError:
        _log.info("client left its stream tokens=%d", sum(answer.tokens for answer in answers))
    except Exception as error:
        if events.response is None:
            raise
        await events.fail(error)
    return events.response or web.Response(status=499)


class _EventStream:
    """The response of a stream; its head is sent with the first event."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._last_write = time.monotonic()
        self.response: web.StreamResponse | None = None

    async def send(self, *events: openai.Json) -> None:
        await self.write(b"".join(map(sse.event, events)))

    async def keep_alive(self) -> None:
        if time.monotonic() - self._last_write > KEEP_ALIVE_S:
            await self.write(sse.STILL_WORKING)

    async def fail(self, error: Exception) -> None:
        """End a stream that has begun with an error event and no [DONE]."""
        if not isinstance(error, CoveyError):
            _log.error("internal error in a stream %s", where(error))
            error = EngineError("internal error")
        else:
            _log.warning("a stream broke error=%s", error.message)
        try:
            await self.send(openai.error_body(error))
        except DisconnectedError:
            _log.info("client left before the error was sent")

    async def write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                if self.response is None:
                    response = web.StreamResponse(headers=sse.HEADERS)
                    await response.prepare(self._request)
                    self.response = response
                await self.response.write(data)
        except (ConnectionError, TimeoutError) as error:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise DisconnectedError from error
        self._last_write = time.monotonic()


def _opening(form: Form, index: int, echo: str) -> list[openai.Json]:
    chunks = [form.begin(index), form.delta(index, echo) if echo else None]
    return [chunk for chunk in chunks if chunk]


def _usage(job: Job, answers: Sequence[Answer]) -> openai.Json:
    said = sum(answer.tokens for answer in answers)
    return openai.usage(len(job.prompt), said, answers[0].timings.reused)


def _check_present(request: web.Request) -> None:
    if request.transport is None or request.transport.is_closing():
        raise DisconnectedError


def _log_done(job: Job, answers: Sequence[Answer]) -> None:
    for answer in answers:
        cost = answer.timings
        _log.info(
            "answered prompt_tokens=%d tokens=%d reason=%s prompt_s=%.3f generate_s=%.3f",
            len(job.prompt), answer.tokens, answer.reason, cost.prompt_s, cost.generate_s,
        )  # fmt: skip
