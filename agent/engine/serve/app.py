"""The shell of a head's OpenAI server: routes, bodies, streams, and clients that leave.

Used by the head's engine process, which serves `make_app(model)` on the overlay address; the
gateway is its client. Requests are checked in `schema.py` and answered in `openai.py`'s forms.

A stream's status line is sent with the first token (or after KEEP_ALIVE_S), so that a ring that
breaks before it is still an ordinary HTTP error, which the gateway can try elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

from aiohttp import web

from agent.engine.generation import GenerationRequest, Model
from agent.engine.serve import openai, sse
from agent.engine.serve.about import About
from agent.engine.serve.answer import Answer
from agent.engine.serve.http import INLINE_BYTES, MAX_BODY_BYTES, errors, read_body, reply
from agent.engine.serve.openai import ApiError, ChatForm, CompletionForm, Form
from agent.engine.serve.schema import Ask, ChatAsk, CompletionAsk, parse_chat, parse_completion
from agent.engine.serve.template import ChatTemplate
from agent.errors import CoveyError, EngineError, NotRunning

_log = logging.getLogger(__name__)

# Some run at once, the others wait; past this the wait is longer than clients wait.
MAX_REQUESTS = 256
# Proxies commonly close a connection that is silent for 30 or 60 s.
KEEP_ALIVE_S = 20.0
# A client that reads nothing for so long holds the ring back from the others.
WRITE_TIMEOUT_S = 30.0


def make_app(model: Model) -> web.Application:
    """Return the application that serves `model`, to be run by the caller's AppRunner."""
    about = About(model, ["chat", "completions"])
    server = _Server(model, about)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[errors])
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/completions", server.completion)
    about.refuse(app.router, "/v1/embeddings", "embeddings")
    about.refuse(app.router, "/v1/rerank", "reranking")
    about.add_routes(app.router)
    return app


class _DisconnectedError(Exception):
    """The client has closed its connection."""


@dataclass(frozen=True)
class _Job:
    """One request on its way to the ring."""

    ask: Ask
    form: Form
    prompt: tuple[int, ...]
    max_tokens: int
    echo: str


class _Server:
    def __init__(self, model: Model, about: About) -> None:
        self._model = model
        self._about = about
        self._template = ChatTemplate(model.chat_template, bos=model.bos, eos=model.eos)
        self._requests = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        return await self._serve(request, len(body), lambda: self._chat_job(parse_chat(body)))

    async def completion(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        return await self._serve(
            request, len(body), lambda: self._completion_job(parse_completion(body))
        )

    async def _serve(
        self, request: web.Request, size: int, prepare: Callable[[], _Job]
    ) -> web.StreamResponse:
        self._about.check_ready()  # before the model is asked to tokenize anything
        job = prepare() if size <= INLINE_BYTES else await asyncio.to_thread(prepare)
        if self._requests >= MAX_REQUESTS:
            raise NotRunning(
                f"{self._requests} requests are waiting for {self._model.name} already",
                hint="Try again later.",
            )
        self._requests += 1
        try:
            if job.ask.sampling.takes_preparing:
                await asyncio.to_thread(self._model.prepare, job.ask.sampling)
            generation = self._model.generate(
                GenerationRequest(job.prompt, job.max_tokens, job.ask.sampling)
            )
            answer = Answer(generation, job.ask.stops)
            if job.ask.stream:
                return await _stream(request, job, answer)
            return await _whole(request, job, answer)
        except _DisconnectedError:
            _log.info("client left before the answer model=%s", self._model.name)
            return web.Response(status=499)  # nginx's word for it; nobody reads it
        finally:
            self._requests -= 1

    def _chat_job(self, ask: ChatAsk) -> _Job:
        self._about.check_name(ask.model)
        text = self._template.render(
            ask.messages, now=datetime.now().astimezone(), variables=ask.variables
        )
        return self._job(ask, ChatForm, self._chat_prompt(text), "", "messages")

    def _completion_job(self, ask: CompletionAsk) -> _Job:
        self._about.check_name(ask.model)
        if isinstance(ask.prompt, str):
            prompt, text = self._model.tokenize(ask.prompt, special=True), ask.prompt
        else:
            prompt = ask.prompt
            text = self._model.detokenize(prompt).decode(errors="replace") if ask.echo else ""
        return self._job(ask, CompletionForm, prompt, text if ask.echo else "", "prompt")

    def _chat_prompt(self, text: str) -> tuple[int, ...]:
        """Return the ids of a rendered chat, without a second BOS where the template wrote one."""
        ids = self._model.tokenize(text, special=True)
        if self._model.bos and text.startswith(self._model.bos):
            added = self._model.tokenize("", special=True)[:1]
            if added and ids[:2] == added * 2:
                return ids[1:]
        return ids

    def _job(
        self,
        ask: Ask,
        form: type[ChatForm] | type[CompletionForm],
        prompt: tuple[int, ...],
        echo: str,
        param: str,
    ) -> _Job:
        if not prompt:
            raise ApiError("The prompt is empty", param=param)
        room = self._model.context - len(prompt)
        if room < 1:
            raise ApiError(
                f"This model's context is {self._model.context} tokens, but the prompt has"
                f" {len(prompt)} tokens",
                hint="Shorten it, and leave room for the answer.",
                param=param,
                code="context_length_exceeded",
            )
        return _Job(
            ask=ask,
            form=form(
                secrets.token_hex(12),
                int(time.time()),
                self._model.name,
                include_usage=ask.stream and ask.include_usage,
            ),
            prompt=prompt,
            max_tokens=min(room, ask.max_tokens or room),
            echo=echo,
        )


async def _whole(request: web.Request, job: _Job, answer: Answer) -> web.Response:
    parts = [job.echo]
    async with aclosing(answer.texts()) as texts:
        async for text in texts:
            _check_present(request)
            parts.append(text)
    counts = openai.usage(len(job.prompt), answer.tokens, answer.timings.reused)
    _log_done(job, answer)
    return reply(
        job.form.whole(
            "".join(parts),
            answer.reason,
            {"usage": counts, "timings": openai.timings(answer.timings)},
        )
    )


async def _stream(request: web.Request, job: _Job, answer: Answer) -> web.StreamResponse:
    stream = _EventStream(request)
    form = job.form
    opening = [
        value for value in (form.begin(), form.delta(job.echo) if job.echo else None) if value
    ]
    try:
        async with aclosing(answer.texts()) as texts:
            async for text in texts:
                _check_present(request)
                if answer.tokens and opening:
                    await stream.send(*opening)
                    opening = []
                if text:
                    await stream.send(form.delta(text))
                else:
                    await stream.keep_alive()
        last = form.end(answer.reason, {"timings": openai.timings(answer.timings)})
        counts = openai.usage(len(job.prompt), answer.tokens, answer.timings.reused)
        await stream.send(
            *opening, last, *([form.counted(counts)] if job.ask.include_usage else [])
        )
        await stream.write(sse.DONE)
        _log_done(job, answer)
    except _DisconnectedError:
        _log.info("client left its stream tokens=%d", answer.tokens)
    except Exception as error:
        if stream.response is None:
            raise
        await stream.fail(error)
    return stream.response or web.Response(status=499)


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
            _log.error("internal error in a stream", exc_info=error)
            error = EngineError("internal error")
        else:
            _log.warning("a stream broke error=%s", error.message)
        try:
            await self.send(openai.error_body(error))
        except _DisconnectedError:
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
            raise _DisconnectedError from error
        self._last_write = time.monotonic()


def _check_present(request: web.Request) -> None:
    if request.transport is None or request.transport.is_closing():
        raise _DisconnectedError


def _log_done(job: _Job, answer: Answer) -> None:
    cost = answer.timings
    _log.info(
        "answered prompt_tokens=%d tokens=%d reason=%s prompt_s=%.3f generate_s=%.3f",
        len(job.prompt), answer.tokens, answer.reason, cost.prompt_s, cost.generate_s,
    )  # fmt: skip
