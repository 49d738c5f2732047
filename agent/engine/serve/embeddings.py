"""The server of a model for embeddings or ranks: /v1/embeddings or /v1/rerank.

Run by `embedding_process.py` with an AppRunner that cancels the handler of a client that has left,
which drops what is not computed yet. Requests and answers are in `vectors.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from aiohttp import web

from agent.engine.embedding import Encoder, Vectors
from agent.engine.serve import vectors
from agent.engine.serve.about import About
from agent.engine.serve.http import INLINE_BYTES, MAX_BODY_BYTES, errors, read_body, reply
from agent.engine.serve.openai import ApiError
from agent.engine.serve.vectors import EmbeddingAsk, RankAsk
from agent.errors import NotRunning

_log = logging.getLogger(__name__)

# Past this the wait is longer than clients wait.
MAX_REQUESTS = 256
# More values are written as JSON in a thread: so many take about 10 ms.
INLINE_VALUES = 2**16

_Ids = Sequence[int]
_T = TypeVar("_T")


def make_app(encoder: Encoder) -> web.Application:
    """Return the application that serves `encoder`; its runner has `handler_cancellation`."""
    ranks = encoder.purpose == "ranks"
    about = About(encoder, ["rerank" if ranks else "embeddings"])
    server = _Server(encoder, about)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[about.count, errors])
    app.on_response_prepare.append(about.tell)
    about.refuse(app.router, "/v1/chat/completions", "chats")
    about.refuse(app.router, "/v1/completions", "completions")
    if ranks:
        app.router.add_post("/v1/rerank", server.rank)
        about.refuse(app.router, "/v1/embeddings", "embeddings")
    else:
        app.router.add_post("/v1/embeddings", server.embed)
        about.refuse(app.router, "/v1/rerank", "reranking")
    about.refuse(app.router, "/tokenize", "tokenizing")
    about.refuse(app.router, "/detokenize", "tokenizing")
    about.add_routes(app.router)
    return app


class _Server:
    def __init__(self, encoder: Encoder, about: About) -> None:
        self._encoder = encoder
        self._about = about
        self._requests = 0

    async def embed(self, request: web.Request) -> web.Response:
        body = await self._ready_body(request)
        ask, texts = await _inline(body, lambda: self._embedding(body))
        found = await self._encode("embeddings", texts)
        model, tokens = self._encoder.name, sum(map(len, texts))

        def answer() -> web.Response:
            return reply(vectors.embeddings(model, found, tokens, as_base64=ask.as_base64))

        if found.size <= INLINE_VALUES:
            return answer()
        return await asyncio.to_thread(answer)

    async def rank(self, request: web.Request) -> web.Response:
        body = await self._ready_body(request)
        ask, texts = await _inline(body, lambda: self._pairs(body))
        found = await self._encode("ranks", texts)
        return reply(vectors.ranks(ask, found[:, 0].tolist(), sum(map(len, texts))))

    async def _ready_body(self, request: web.Request) -> bytes:
        body = await read_body(request)
        self._about.check_ready()  # before the model is asked to tokenize anything
        return body

    def _embedding(self, body: bytes) -> tuple[EmbeddingAsk, list[_Ids]]:
        ask = vectors.parse_embedding(body, self._encoder.width)
        self._about.check_name(ask.model)
        texts: list[_Ids] = []
        for number, given in enumerate(ask.inputs):
            if isinstance(given, str):
                ids = self._encoder.tokenize(given)
            else:
                self._encoder.check(given)
                ids = given
            self._check_fits(ids, f"`input[{number}]`", "input")
            texts.append(ids)
        return ask, texts

    def _pairs(self, body: bytes) -> tuple[RankAsk, list[_Ids]]:
        ask = vectors.parse_rank(body)
        self._about.check_name(ask.model)
        texts: list[_Ids] = [self._encoder.pair(ask.query, text) for text in ask.documents]
        for number, ids in enumerate(texts):
            self._check_fits(ids, f"`documents[{number}]` with the query", "documents")
        return ask, texts

    def _check_fits(self, ids: _Ids, what: str, param: str) -> None:
        most = self._encoder.context
        if not ids:
            raise ApiError(f"{what} holds no token of this model", param=param)
        if len(ids) > most:
            raise ApiError(
                f"{what} has {len(ids)} tokens; {self._encoder.name} takes {most} at most, since a"
                " text is computed in one piece",
                hint="Split it.",
                param=param,
                code="context_length_exceeded",
            )

    async def _encode(self, what: str, texts: list[_Ids]) -> Vectors:
        if self._requests >= MAX_REQUESTS:
            raise NotRunning(
                f"{self._requests} requests are waiting for {self._encoder.name} already",
                hint="Try again later.",
            )
        self._requests += 1
        began = time.monotonic()
        try:
            found = await self._encoder.encode(texts)
        except asyncio.CancelledError:
            _log.info("client left before its %s texts=%d", what, len(texts))
            raise
        finally:
            self._requests -= 1
        _log.info(
            "answered %s texts=%d tokens=%d seconds=%.3f",
            what, len(texts), sum(map(len, texts)), time.monotonic() - began,
        )  # fmt: skip
        return found


async def _inline(body: bytes, prepare: Callable[[], _T]) -> _T:
    """Tokenize a short request here, a long one in a thread."""
    return prepare() if len(body) <= INLINE_BYTES else await asyncio.to_thread(prepare)
