"""The gateway's own answers, as responses."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from gateway.errors import ApiError


def json_answer(body: dict[str, Any], error: ApiError | None = None) -> web.Response:
    """Return a JSON object, with the status and headers of an error if it is one."""
    return answer(msgspec.json.encode(body), error)


def answer(body: bytes, error: ApiError | None) -> web.Response:
    """Return JSON that is encoded already, with the status and headers of an error if it is one."""
    response = web.Response(
        body=body,
        status=error.status if error else 200,
        content_type="application/json",
    )
    if error is not None and error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if error is not None and error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
