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
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

import msgspec
from aiohttp import web

from agent.engine.generation import GenerationRequest, Model
from agent.engine.serve import openai, sse
from agent.engine.serve.answer import Answer
from agent.engine.serve.openai import ApiError, ChatForm, CompletionForm, Form
from agent.engine.serve.schema import Ask, ChatAsk, CompletionAsk, parse_chat, parse_completion
from agent.engine.serve.template import ChatTemplate
from agent.errors import CoveyError, EngineError, NotRunning

_log = logging.getLogger(__name__)

# A context of a million tokens is about 4 MB of text; the rest is room for JSON's escapes.
MAX_BODY_BYTES = 8 * 2**20
BODY_TIMEOUT_S = 60.0
# Some run at once, the others wait; past this the wait is longer than clients wait.
MAX_REQUESTS = 256
# When to try again: about what a ring needs to be planned anew and loaded.
RETRY_AFTER_S = 5
# Proxies commonly close a connection that is silent for 30 or 60 s.
KEEP_ALIVE_S = 20.0
# A client that reads nothing for so long holds the ring back from the others.
WRITE_TIMEOUT_S = 30.0
# Longer texts are tokenized in a thread: 64 KiB take about 10 ms, a pause nobody sees.
INLINE_BYTES = 64 * 2**10

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(model: Model) -> web.Application:
    """Return the application that serves `model`, to be run by the caller's AppRunner."""
    server = _Server(model)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors])
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/completions", server.completion)
    app.router.add_get("/v1/models", server.models)
    app.router.add_get("/v1/models/{id:.+}", server.model)
    app.router.add_get("/health", server.health)
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
    def __init__(self, model: Model) -> None:
        self._model = model
        self._template = ChatTemplate(model.chat_template, bos=model.bos, eos=model.eos)
        self._requests = 0

    async def health(self, _: web.Request) -> web.Response:
        state, reason = self._model.state()
        if state == "ready":
            return _json(
                {"status": "ok", "model": self._model.name, "context": self._model.context}
            )
        body = openai.error_body(self._not_ready(state, reason))
        return _json({"status": state, "reason": reason, **body}, 503, RETRY_AFTER_S)

    async def models(self, _: web.Request) -> web.Response:
        return _json({"object": "list", "data": [self._model_object()]})

    async def model(self, request: web.Request) -> web.Response:
        self._check_name(request.match_info["id"])
        return _json(self._model_object())

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        return await self._serve(request, len(body), lambda: self._chat_job(parse_chat(body)))

    async def completion(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        return await self._serve(
            request, len(body), lambda: self._completion_job(parse_completion(body))
        )

    async def _serve(
        self, request: web.Request, size: int, prepare: Callable[[], _Job]
    ) -> web.StreamResponse:
        state, reason = self._model.state()
        if state != "ready":  # before the model is asked to tokenize anything
            raise self._not_ready(state, reason)
        job = prepare() if size <= INLINE_BYTES else await asyncio.to_thread(prepare)
        if self._requests >= MAX_REQUESTS:
            raise NotRunning(
                f"{self._requests} requests are waiting for {self._model.name} already",
                hint="Try again later.",
            )
        self._requests += 1
        try:
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
        self._check_name(ask.model)
        text = self._template.render(
            ask.messages, now=datetime.now().astimezone(), variables=ask.variables
        )
        return self._job(ask, ChatForm, self._chat_prompt(text), "", "messages")

    def _completion_job(self, ask: CompletionAsk) -> _Job:
        self._check_name(ask.model)
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

    def _check_name(self, name: str) -> None:
        if name != self._model.name:
            raise ApiError(
                f"The model {name!r} does not exist here; this server has {self._model.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def _not_ready(self, state: str, reason: str) -> NotRunning:
        return NotRunning(f"The model {self._model.name} is {state}: {reason or 'no reason given'}")

    def _model_object(self) -> openai.Json:
        return openai.model_object(self._model.name, self._model.created, self._model.context)


async def _whole(request: web.Request, job: _Job, answer: Answer) -> web.Response:
    parts = [job.echo]
    async with aclosing(answer.texts()) as texts:
        async for text in texts:
            _check_present(request)
            parts.append(text)
    counts = openai.usage(len(job.prompt), answer.tokens, answer.timings.reused)
    _log_done(job, answer)
    return _json(
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


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into OpenAI's error form."""
    try:
        return await handler(request)
    except EngineError as error:
        # Before the first byte a broken ring is a reason to come back, or to go elsewhere.
        _log.warning("request failed path=%s error=%s", request.path, error.message)
        return _json(openai.error_body(error, 503), 503, RETRY_AFTER_S)
    except CoveyError as error:
        status = error.http_status
        return _json(openai.error_body(error), status, RETRY_AFTER_S if status == 503 else None)
    except web.HTTPException as error:
        return _http_error(request, error)
    except Exception:
        _log.exception("internal error path=%s", request.path)
        return _json(openai.error_body(EngineError("internal error"), 500), 500)


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    texts = {
        404: f"There is no {request.path} here",
        405: f"{request.path} does not take {request.method}",
        413: f"The request's body is larger than {MAX_BODY_BYTES} bytes",
    }
    refusal = ApiError(texts.get(error.status, error.reason), status=error.status)
    response = _json(openai.error_body(refusal), error.status)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise ApiError(
            f"The request's body did not arrive within {BODY_TIMEOUT_S:.0f} s", status=408
        ) from None
    except web.RequestPayloadError as error:
        raise ApiError(f"The request's body cannot be read: {error}") from error


def _check_present(request: web.Request) -> None:
    if request.transport is None or request.transport.is_closing():
        raise _DisconnectedError


def _log_done(job: _Job, answer: Answer) -> None:
    cost = answer.timings
    _log.info(
        "answered prompt_tokens=%d tokens=%d reason=%s prompt_s=%.3f generate_s=%.3f",
        len(job.prompt), answer.tokens, answer.reason, cost.prompt_s, cost.generate_s,
    )  # fmt: skip


def _json(body: openai.Json, status: int = 200, retry_after_s: int | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        content_type="application/json",
        headers={} if retry_after_s is None else {"Retry-After": str(retry_after_s)},
    )
