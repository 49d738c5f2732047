"""From a client's request to an answer: read it, let the router choose, try, and try elsewhere.

A shell, used by `app.py`; one attempt is `upstream.py`. Another replica is tried only while the
client has not got a byte, and only when there was no connection or the answer was a 5xx.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Any

import msgspec
from aiohttp import web

from gateway.errors import ApiError
from gateway.routing import NoneUsable, Replica, Router, UnknownModel
from gateway.upstream import Ask, AttemptFailedError, Upstream
from gateway.watch import Watch

_log = logging.getLogger(__name__)

BODY_TIMEOUT_S = 60.0
MAX_ATTEMPTS = 3
RETRY_AFTER_MOST_S = 30
# An agent that starts takes a few seconds until it serves its socket.
RETRY_AFTER_AGENT_S = 5


class _Body(msgspec.Struct, frozen=True):
    model: Any = None
    stream: Any = None


_decode = msgspec.json.Decoder(_Body).decode


class Proxy:
    """Serves the requests whose JSON body names a model."""

    def __init__(self, router: Router, watch: Watch, upstream: Upstream) -> None:
        self._router = router
        self._watch = watch
        self._upstream = upstream

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one request; raises ApiError for what the gateway answers itself."""
        ask = _ask(request, await _read(request))
        tried: set[str] = set()
        failed: AttemptFailedError | None = None
        for _ in range(MAX_ATTEMPTS):
            chosen = self._router.choose(
                ask.model, streamed=ask.streamed, now=time.monotonic(), without=frozenset(tried)
            )
            if not isinstance(chosen, Replica):
                if failed is None:
                    raise self.refusal(ask.model, chosen)
                break
            try:
                return await self._upstream.attempt(ask, chosen)
            except AttemptFailedError as error:
                failed = error
                tried.add(chosen.url)
                _log.warning(
                    "attempt failed model=%s replica=%s reason=%s",
                    ask.model, chosen.name, error.reason,
                )  # fmt: skip
        assert failed is not None  # noqa: S101  # the loop ends only after a failed attempt
        if failed.answer is not None:
            return failed.answer
        raise ApiError(
            f"No replica of {ask.model!r} answers ({failed.replica.name} {failed.reason})",
            status=503,
            hint="Try again.",
            retry_after_s=1,
        )

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


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise ApiError(
            f"The request's body did not arrive within {BODY_TIMEOUT_S:.0f} s", status=408
        ) from None
    except web.RequestPayloadError as error:
        raise ApiError(f"The request's body cannot be read: {error}", status=400) from error


def _ask(request: web.Request, body: bytes) -> Ask:
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"The request's body is not a JSON object: {error}", status=400) from error
    if not isinstance(fields.model, str) or not fields.model:
        raise ApiError("The request names no model", status=400, hint="Set `model`.", param="model")
    return Ask(request, body, fields.model, fields.stream is True)
