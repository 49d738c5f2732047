"""The middlewares that let a request in: whose key, which model, how much; and count its tokens.

A shell over `accounts.py`, used by `app.py`. It leaves in the request whose it is
(`attached.KEY`), and a meter (`METER`) that whoever serves it feeds with the answer's bytes.

| given | keys are required | they are not |
|---|---|---|
| no key | 401 | served, not counted |
| a key of this gateway | served, counted; its secret goes no further | the same |
| `ck-…` that is unknown, revoked or expired | 401 | 401 |
| anything else, such as another server's key | 401 | served, not counted, and passed on |
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from agent.page import serve as page
from gateway.attached import BODY, KEY, METER, RECORD
from gateway.errors import ApiError
from gateway.keys.accounts import RETRY_AFTER_STORE_S, Accounts
from gateway.keys.key import PREFIX, Key
from gateway.keys.ledger import Headroom
from gateway.usage import Meter, Tokens, of_prompt

# Load balancers ask the first; the second is for this machine only anyway (`app.py`). The page of
# the dashboard is open as well (`is_open`), its data are not.
OPEN_PATHS = frozenset({"/health", "/gateway/status"})
# They count tokens, or tell of a model, and generate none.
FREE_PATHS = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens", "/api/show"})
# Where a request does not say how much may be generated, it holds as much as many answers take.
USUAL_COMPLETION = 256

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Body(msgspec.Struct, frozen=True):
    model: Any = None
    n: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    options: Any = None


_decode = msgspec.json.Decoder(_Body).decode


class Guard:
    """Checks requests against `accounts`. `required` may change while it runs."""

    def __init__(self, accounts: Accounts, *, required: bool) -> None:
        self._accounts = accounts
        self.required = required

    @web.middleware
    async def identify(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Find out whose request it is, before its body is read; raises ApiError."""
        if not is_open(request.path):
            key = self._key(request)
            if key is not None:
                request[KEY] = key
                request[RECORD].key, request[RECORD].key_id = key.name, key.id
        return await handler(request)

    @web.middleware
    async def count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Hold what a request may cost, and count what it did cost; raises ApiError."""
        key: Key | None = request.get(KEY)
        if key is None or request.method != "POST" or request.path.startswith(page.ROOT):
            return await handler(request)
        return await self._counted(request, handler, key)

    async def headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add what is left of the key's limits to an answer; a signal of aiohttp's."""
        if KEY not in request or METER not in request:
            return
        for name, left in zip(
            ("requests", "tokens"), self._accounts.headroom(request[KEY]), strict=True
        ):
            if left is not None:
                _tell(response, name, left)

    def _key(self, request: web.Request) -> Key | None:
        """Return whose request it is, None for nobody's; raises ApiError."""
        secret = _secret(request)
        key = self._accounts.find(secret) if secret else None
        if key is not None:
            state = key.state(time.time())
            if state == "active":
                return key
            raise _unauthorized(
                f"The API key {key.name} has been revoked" if state == "revoked"
                else f"The API key {key.name} has expired"
            )  # fmt: skip
        if not self.required and not secret.startswith(PREFIX):
            return None
        if not self._accounts.known:
            raise ApiError(
                "The keys are not known yet",
                status=503,
                hint="The gateway waits for its store; try again.",
                retry_after_s=RETRY_AFTER_STORE_S,
            )
        if not secret:
            raise _unauthorized("No API key was given")
        raise _unauthorized("The API key is not known here")

    async def _counted(
        self, request: web.Request, handler: Handler, key: Key
    ) -> web.StreamResponse:
        body = request[BODY]
        fields = _fields(body)
        model = fields.model if isinstance(fields.model, str) else ""
        if key.models != ("*",) and not key.allows(model):
            raise ApiError(
                f"The API key {key.name} may not use the model {model!r}" if model
                else f"The request names no model, and the API key {key.name} is for some only",
                status=403,
                hint=f"It may use {', '.join(key.models)}.",
                param="model",
                code="model_not_allowed",
            )  # fmt: skip
        meter = request[METER] = Meter()
        free = request.path in FREE_PATHS
        prompt = 0 if free else of_prompt(len(body))
        wanted = 0 if free else prompt + _completion(fields)
        held = await self._accounts.admit(key, prompt, wanted)
        served = False
        try:
            response = await handler(request)
            served = response.status < 400
            if not meter.fed and isinstance(response, web.Response):
                meter.feed(response.body if isinstance(response.body, bytes) else b"")
            return response
        except asyncio.CancelledError:
            served = True  # whoever asked left; what was begun for them was done all the same
            raise
        finally:
            counted = Tokens(0, 0) if free else meter.tokens()
            cost = counted or Tokens(prompt, meter.estimate())
            self._accounts.settle(held, model, cost if served else None, estimated=counted is None)


def is_open(path: str) -> bool:
    """Say whether a path needs no key, whatever is required elsewhere."""
    return path in OPEN_PATHS or page.is_open(path)


def _secret(request: web.Request) -> str:
    """Return the secret that the request carries, empty for none; one of ours before others'."""
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    secrets = [bearer.strip()] if scheme.lower() == "bearer" else []
    secrets += [request.headers.get(name, "").strip() for name in ("x-api-key", "api-key")]
    given = [secret for secret in secrets if secret]
    return next((s for s in given if s.startswith(PREFIX)), given[0] if given else "")


def _unauthorized(message: str) -> ApiError:
    return ApiError(
        message,
        status=401,
        hint="Send one as `Authorization: Bearer ck-…`, `x-api-key` or `api-key`.",
        code="invalid_api_key",
    )


def _fields(body: bytes) -> _Body:
    """Return what the body says; nothing if it is no JSON object, which the handler refuses."""
    try:
        return _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Body()


def _completion(fields: _Body) -> int:
    """Return the most tokens that the request lets be generated, or a usual number."""
    options = fields.options if isinstance(fields.options, dict) else {}
    answers = fields.n if isinstance(fields.n, int) and fields.n > 1 else 1
    for most in (
        fields.max_completion_tokens, fields.max_tokens, fields.max_output_tokens,
        options.get("num_predict"),
    ):  # fmt: skip
        if isinstance(most, int) and most >= 0:
            return most * answers
    return USUAL_COMPLETION * answers


def _tell(response: web.StreamResponse, name: str, left: Headroom) -> None:
    """Set the headers that OpenAI's clients know."""
    response.headers[f"x-ratelimit-limit-{name}"] = str(left.limit)
    response.headers[f"x-ratelimit-remaining-{name}"] = str(left.left)
    response.headers[f"x-ratelimit-reset-{name}"] = span(left.reset_s)


def span(seconds: float) -> str:
    """Return a time as OpenAI writes it: 20ms, 1s, 6m0s, 2h0m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
