"""The shell of a head's OpenAI server: routes, bodies, streams, and clients that leave.

Used by the head's engine process, which serves `make_app(model)` on the overlay address; the
gateway is its client. Requests are checked in `schema.py`, and `deliver.py` answers in the forms of
`forms.py`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial

from aiohttp import web

from agent.engine.generation import GenerationRequest, Model
from agent.engine.serve.about import About
from agent.engine.serve.answer import Answer
from agent.engine.serve.deliver import DisconnectedError, Job, stream, whole
from agent.engine.serve.forms import ChatForm, CompletionForm
from agent.engine.serve.http import INLINE_BYTES, MAX_BODY_BYTES, errors, read_body, reply
from agent.engine.serve.openai import ApiError, Json
from agent.engine.serve.sampling import SEEDS
from agent.engine.serve.schema import Ask, ChatAsk, CompletionAsk, parse_chat, parse_completion
from agent.engine.serve.template import ChatTemplate
from agent.engine.serve.tokens import parse_detokenize, parse_tokenize, tokens_object
from agent.engine.serve.tools import CallReader, format_of
from agent.errors import NotRunning

_log = logging.getLogger(__name__)

# Some run at once, the others wait; past this the wait is longer than clients wait.
MAX_REQUESTS = 256
# The gateway's header (`gateway/wishes.py`) and its bound.
PRIORITY, MAX_PRIORITY = "x-covey-priority", 1000


def make_app(model: Model) -> web.Application:
    """Return the application that serves `model`, to be run by the caller's AppRunner."""
    about = About(model, ["chat", "completions"])
    server = _Server(model, about)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[about.count, errors])
    app.on_response_prepare.append(about.tell)
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/completions", server.completion)
    app.router.add_post("/tokenize", server.tokenize)
    app.router.add_post("/detokenize", server.detokenize)
    about.refuse(app.router, "/v1/embeddings", "embeddings")
    about.refuse(app.router, "/v1/rerank", "reranking")
    about.add_routes(app.router)
    return app


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

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        return await self._by_vocabulary(len(body), lambda: self._tokens(body))

    async def detokenize(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        return await self._by_vocabulary(len(body), lambda: self._text(body))

    async def _by_vocabulary(self, size: int, answer: Callable[[], Json]) -> web.Response:
        """Reply with what the vocabulary alone knows; the ring has nothing to do with it."""
        self._about.check_ready()
        # Pieces are looked up one by one, so that they take longer than a prompt's tokens.
        if size <= INLINE_BYTES // 4:
            return reply(answer())
        return await asyncio.to_thread(lambda: reply(answer()))

    def _tokens(self, body: bytes) -> Json:
        ask = parse_tokenize(body, self._model.name)
        self._about.check_name(ask.model)
        if isinstance(ask.given, ChatAsk):
            ids = self._chat_prompt(self._rendered(ask.given))
        else:
            ids = self._model.tokenize(ask.given, special=ask.parse_special, around=ask.add_special)
        ask.check_fits(len(ids))
        return tokens_object(ids, self._model.labels(ids) if ask.with_pieces else None)

    def _text(self, body: bytes) -> Json:
        ask = parse_detokenize(body, self._model.name)
        self._about.check_name(ask.model)
        pieces = self._model.labels(ask.ids)
        return {"content": b"".join(pieces).decode(errors="replace")}

    async def _serve(
        self, request: web.Request, size: int, prepare: Callable[[], Job]
    ) -> web.StreamResponse:
        self._about.check_ready()  # before the model is asked to tokenize anything
        priority = _priority(request)
        job = prepare() if size <= INLINE_BYTES else await asyncio.to_thread(prepare)
        count = job.ask.choices
        if self._requests + count > MAX_REQUESTS:
            raise NotRunning(
                f"{self._requests} requests are waiting for {self._model.name} already",
                hint="Try again later.",
            )
        self._requests += count
        try:
            if job.ask.sampling.takes_preparing:
                await asyncio.to_thread(self._model.prepare, job.ask.sampling)
            answers = [
                Answer(
                    partial(self._model.generate, generation),
                    job.ask.stops,
                    job.reader and job.reader(),
                )
                for generation in _generations(job, priority)
            ]
            return await (stream if job.ask.stream else whole)(request, job, answers)
        except DisconnectedError:
            _log.info("client left before the answer model=%s", self._model.name)
            return web.Response(status=499)  # nginx's word for it; nobody reads it
        finally:
            self._requests -= count

    def _chat_job(self, ask: ChatAsk) -> Job:
        self._about.check_name(ask.model)
        prompt = self._chat_prompt(self._rendered(ask))
        job = self._job(ask, ChatForm, prompt, "", "messages")
        return self._with_tools(job, ask) if ask.offer.tools else job

    def _rendered(self, ask: ChatAsk) -> str:
        """Return what the model's chat template makes of a chat."""
        if ask.offer.tools and not self._template.knows_tools:
            raise ApiError(
                f"The chat template of {self._model.name} knows no tools",
                hint="Leave `tools` out, or set `tool_choice` to none.",
                param="tools",
                code="unsupported_parameter",
            )
        return self._template.render(
            ask.messages,
            now=datetime.now().astimezone(),
            variables=ask.variables,
            tools=ask.offer.shown,
        )

    def _with_tools(self, job: Job, ask: ChatAsk) -> Job:
        format_ = format_of(self._model.chat_template or "")
        sampling = ask.sampling
        if ask.offer.must:
            grammar = format_.grammar(ask.offer.tools, several=ask.offer.several)
            sampling = replace(sampling, grammar=grammar)
        start = len(self._model.tokenize("", special=True))
        marks = [self._model.tokenize(mark, special=True)[start:] for mark in format_.marks]
        return replace(
            job,
            ask=replace(ask, sampling=sampling),
            reader=partial(
                CallReader, format_, ask.offer.names, _call_id, several=ask.offer.several
            ),
            written=frozenset(mark[0] for mark in marks if len(mark) == 1),
        )

    def _completion_job(self, ask: CompletionAsk) -> Job:
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
    ) -> Job:
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
        return Job(
            ask=ask,
            form=form(
                secrets.token_hex(12),
                int(time.time()),
                self._model.name,
                include_usage=ask.stream and ask.include_usage,
                logprobs=ask.logprobs is not None,
            ),
            prompt=prompt,
            max_tokens=min(room, ask.max_tokens or room),
            echo=echo,
        )


def _priority(request: web.Request) -> int:
    """Return what the header says, nearer to 0 if need be: who is urgent goes first in the ring."""
    text = request.headers.get(PRIORITY, "0").strip()
    if not re.fullmatch(r"[+-]?\d{1,12}", text):
        raise ApiError(f"{PRIORITY} is no integer: {text[:60]!r}", param=PRIORITY)
    return min(max(int(text), -MAX_PRIORITY), MAX_PRIORITY)


def _generations(job: Job, priority: int) -> Iterator[GenerationRequest]:
    """Yield what to ask the model for: with a seed, every choice gets one of its own."""
    sampling = job.ask.sampling
    for index in range(job.ask.choices):
        own = sampling.seed
        if own is not None and index:
            own = (own + index) % SEEDS
        yield GenerationRequest(
            job.prompt,
            job.max_tokens,
            replace(sampling, seed=own),
            priority=priority,
            logprobs=job.ask.logprobs,
            written=job.written,
        )


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
