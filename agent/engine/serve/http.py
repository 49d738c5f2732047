"""Bodies in and out, and errors in OpenAI's form: what every model's server has in common.

Used by `app.py` (text) and `embeddings.py`.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from agent.engine.serve import openai
from agent.engine.serve.openai import ApiError
from agent.errors import CoveyError, EngineError

_log = logging.getLogger(__name__)

# A context of a million tokens is about 4 MB of text; the rest is room for JSON's escapes.
MAX_BODY_BYTES = 8 * 2**20
BODY_TIMEOUT_S = 60.0
# When to try again: about what a ring needs to be planned anew and loaded.
RETRY_AFTER_S = 5
# Longer texts are tokenized in a thread: 64 KiB take about 10 ms, a pause nobody sees.
INLINE_BYTES = 64 * 2**10

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into OpenAI's error form."""
    try:
        return await handler(request)
    except EngineError as error:
        # Before the first byte a broken ring is a reason to come back, or to go elsewhere.
        _log.warning("request failed path=%s error=%s", request.path, error.message)
        return reply(openai.error_body(error, 503), 503, RETRY_AFTER_S)
    except CoveyError as error:
        status = error.http_status
        return reply(openai.error_body(error), status, RETRY_AFTER_S if status == 503 else None)
    except web.HTTPException as error:
        return _http_error(request, error)
    except Exception as error:
        _log.error("internal error path=%s %s", request.path, where(error))
        return reply(openai.error_body(EngineError("internal error"), 500), 500)


def where(error: BaseException) -> str:
    """Return what an internal error is and where it arose, without its words.

    They may quote a prompt, and logs never do.
    """
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}".rstrip()


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    texts = {
        404: f"There is no {request.path} here",
        405: f"{request.path} does not take {request.method}",
        413: f"The request's body is larger than {MAX_BODY_BYTES} bytes",
    }
    refusal = ApiError(texts.get(error.status, error.reason), status=error.status)
    response = reply(openai.error_body(refusal), error.status)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


async def read_body(request: web.Request) -> bytes:
    """Return a request's body; raises ApiError for one that breaks off or takes too long."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise ApiError(
            f"The request's body did not arrive within {BODY_TIMEOUT_S:.0f} s", status=408
        ) from None
    except web.RequestPayloadError as error:
        raise ApiError(f"The request's body cannot be read: {error}") from error


def reply(body: openai.Json, status: int = 200, retry_after_s: int | None = None) -> web.Response:
    """Return a body as JSON; `retry_after_s` says when to try again."""
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        content_type="application/json",
        headers={} if retry_after_s is None else {"Retry-After": str(retry_after_s)},
    )
