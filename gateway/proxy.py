"""From a client's request to an answer: read it, let the router choose, try, and try elsewhere.

A shell, used by `app.py`; one attempt is `upstream.py`. Another replica is tried only while the
client has not got a byte, and only when there was no connection or the answer was a 5xx. When a
model's only head is lost, or its ring is being replaced, its requests wait here for the next one:

| a request | then |
|---|---|
| had an answer's first byte passed on | the stream ends with an error, whatever comes next |
| was sent to a head that is gone, or says 503 as its ring is replaced | it goes to the next one |
| comes while there is no head, of a model that answered of late | the same |
| was refused by a head that is ready (too many wait there) | the refusal is the answer |
| lost `MAX_ATTEMPTS` heads, or waits for longer than `wait_s` | 503 |
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from gateway.dialects.port import Dialect, Refused
from gateway.dialects.translation import Translation
from gateway.errors import ApiError
from gateway.routing import NoneUsable, Replica, Router, UnknownModel
from gateway.upstream import Ask, AttemptFailedError, Upstream
from gateway.watch import Watch

_log = logging.getLogger(__name__)

# It might be the request itself that a head dies of: it does not go through all of them.
MAX_ATTEMPTS = 3
# Each holds its body, 16 MiB at most, and a client.
MAX_WAITING = 256
# A waiting request looks at least so often; what it waits for is mostly told.
_LOOK_S = 0.5
RETRY_AFTER_MOST_S = 30
# An agent that starts takes a few seconds until it serves its socket.
RETRY_AFTER_AGENT_S = 5
# Longer bodies are translated in a thread: 256 KiB take about 2 ms, a pause nobody sees.
_INLINE_BYTES = 256 * 2**10


class _Body(msgspec.Struct, frozen=True):
    model: Any = None
    stream: Any = None


_decode = msgspec.json.Decoder(_Body).decode


class Proxy:
    """Serves the requests whose JSON body names a model."""

    def __init__(self, router: Router, watch: Watch, upstream: Upstream, wait_s: float) -> None:
        self._router = router
        self._watch = watch
        self._upstream = upstream
        self.wait_s = wait_s
        self._waiting = 0

    async def handle(
        self, request: web.Request, dialect: Dialect | None = None
    ) -> web.StreamResponse:
        """Serve one request, of OpenAI's or in a dialect.

        Raises ApiError for what the gateway answers itself.
        """
        body = await request.read()
        ask = await _translated(request, body, dialect) if dialect else _ask(request, body)
        tried: set[str] = set()
        failed: AttemptFailedError | None = None
        refused: Replica | None = None
        sent, deadline = 0, math.inf
        while sent < MAX_ATTEMPTS:
            chosen = self._router.choose(
                ask.model, streamed=ask.streamed, now=time.monotonic(), without=frozenset(tried)
            )
            if isinstance(chosen, Replica):
                try:
                    return await self._upstream.attempt(ask, chosen)
                except AttemptFailedError as error:
                    failed = error
                    if dialect is not None:  # a translation has begun with that replica's answer
                        ask = await _translated(request, body, dialect)
                sent += failed.sent
                tried.add(chosen.url)
                _log.warning(
                    "attempt failed model=%s replica=%s reason=%s",
                    ask.model, chosen.name, failed.reason,
                )  # fmt: skip
                if failed.answer is not None and failed.answer.status == 503:
                    refused = chosen
                continue
            if refused is not None:
                # Its ring may be replaced just now, or it has too much to do.
                await self._watch.check(refused)
                refused = None
                continue
            deadline = min(deadline, time.monotonic() + self.wait_s)
            if not self._may_wait(chosen, deadline):
                if failed is None:
                    raise self.refusal(ask.model, chosen)
                break
            await self._wait(deadline)
            tried.clear()
        assert failed is not None  # noqa: S101  # the loop ends only after a failed attempt
        if failed.answer is not None:
            return failed.answer
        raise ApiError(
            f"No replica of {ask.model!r} answers ({failed.replica.name} {failed.reason})",
            status=503,
            hint="Try again.",
            retry_after_s=1,
        )

    def _may_wait(self, outcome: UnknownModel | NoneUsable, deadline: float) -> bool:
        awaited = isinstance(outcome, NoneUsable) and outcome.awaited
        return awaited and self._waiting < MAX_WAITING and time.monotonic() < deadline

    async def _wait(self, deadline: float) -> None:
        """Wait until there may be another head."""
        self._waiting += 1
        try:
            await self._watch.news(min(_LOOK_S, max(0.0, deadline - time.monotonic())))
        finally:
            self._waiting -= 1

    def refusal(self, model: str, outcome: UnknownModel | NoneUsable) -> ApiError:
        """Return why no replica can be chosen for `model`."""
        missing = self._watch.agent_missing
        if isinstance(outcome, NoneUsable):
            return ApiError(
                f"No replica of {model!r} is ready ({'; '.join(outcome.reasons)})",
                status=503,
                hint="Try again later.",
                retry_after_s=min(math.ceil(outcome.retry_after_s), RETRY_AFTER_MOST_S),
            )
        if not self._watch.first_round_done.is_set():
            return ApiError("The gateway is starting", status=503, retry_after_s=1)
        if missing and not outcome.known:
            return ApiError(
                f"No model is known: {missing}", status=503, retry_after_s=RETRY_AFTER_AGENT_S
            )
        known = ", ".join(outcome.known) or "no model yet"
        return ApiError(
            f"The model {model!r} does not exist here; there is {known}",
            status=404,
            hint=f"The mesh's models are not known: {missing}" if missing else "",
            param="model",
            code="model_not_found",
        )


async def _translated(request: web.Request, body: bytes, dialect: Dialect) -> Ask:
    make = partial(Translation, dialect, body, time.time())
    try:
        translation = make() if len(body) <= _INLINE_BYTES else await asyncio.to_thread(make)
    except Refused as refused:
        raise ApiError(refused.message, status=refused.status) from refused
    return Ask(request, translation.body, translation.model, translation.streamed, translation)


def _ask(request: web.Request, body: bytes) -> Ask:
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"The request's body is not a JSON object: {error}", status=400) from error
    if not isinstance(fields.model, str) or not fields.model:
        raise ApiError("The request names no model", status=400, hint="Set `model`.", param="model")
    return Ask(request, body, fields.model, fields.stream is True)
