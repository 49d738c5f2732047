"""The gateway's HTTP surface: routes, what it answers itself, and OpenAI's form for errors.

A shell, run by `serve.py` (and by tests) with an AppRunner whose `handler_cancellation` is on, so
that a client that leaves cancels its request at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from gateway.config import Config
from gateway.dialects.port import Dialect
from gateway.dialects.served import DIALECTS
from gateway.errors import ApiError
from gateway.proxy import RETRY_AFTER_AGENT_S, Proxy
from gateway.routing import Router, UnknownModel
from gateway.upstream import Upstream, connector
from gateway.watch import Source, Watch

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 2**20
_SKIPPED_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(config: Config, make_source: Callable[[], Source] | None) -> web.Application:
    """Return the application; `make_source` is called in the running loop, None: no agent."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors])
    gateway = _Gateway(config, make_source)
    app.cleanup_ctx.append(gateway.live)
    app.router.add_post("/v1/chat/completions", gateway.forward)
    app.router.add_post("/v1/completions", gateway.forward)
    app.router.add_post("/v1/embeddings", gateway.forward)
    app.router.add_post("/v1/rerank", gateway.forward)
    for path in DIALECTS:
        app.router.add_post(path, gateway.translate)
    app.router.add_route("*", "/v1/responses/{id:resp_.+}", gateway.not_kept)
    app.router.add_get("/v1/models", gateway.models)
    app.router.add_get("/v1/models/{id:.+}", gateway.model)
    app.router.add_get("/health", gateway.health)
    app.router.add_get("/gateway/status", gateway.status)
    return app


class _Gateway:
    """The handlers; `live` gives them what needs a running loop."""

    _proxy: Proxy
    _watch: Watch

    def __init__(self, config: Config, make_source: Callable[[], Source] | None) -> None:
        self._config = config
        self._make_source = make_source
        self._router = Router(config.strategy, Random())  # noqa: S311  # a choice, not a secret
        # The router's clock does not go back; clients want unix seconds.
        self._unix_offset = time.time() - time.monotonic()

    async def live(self, _: web.Application) -> AsyncIterator[None]:
        """Hold the connections and the watch as long as the application runs."""
        source = self._make_source() if self._make_source else None
        session = aiohttp.ClientSession(
            connector=connector(),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_SKIPPED_HEADERS,
        )
        self._watch = Watch(self._router, session, source, self._config.replicas)
        upstream = Upstream(self._router, session)
        self._proxy = Proxy(self._router, self._watch, upstream, self._config.wait_s)
        task = asyncio.create_task(self._watch.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            if source is not None:
                await source.aclose()
            await session.close()

    async def forward(self, request: web.Request) -> web.StreamResponse:
        return await self._proxy.handle(request)

    async def translate(self, request: web.Request) -> web.StreamResponse:
        return await self._proxy.handle(request, DIALECTS[request.path])

    async def not_kept(self, _: web.Request) -> web.Response:
        raise ApiError(
            "Responses are not kept here, whatever `store` says",
            status=404,
            hint="Keep them yourself and send them again as `input`.",
        )

    async def models(self, _: web.Request) -> web.Response:
        models = [self._model(entry) for entry in self._router.models(time.monotonic())]
        return _json({"object": "list", "data": models})

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        entries = self._router.models(time.monotonic())
        for entry in entries:
            if entry["id"] == name:
                return _json(self._model(entry))
        raise self._proxy.refusal(name, UnknownModel(tuple(entry["id"] for entry in entries)))

    async def health(self, _: web.Request) -> web.Response:
        entries = self._router.models(time.monotonic())
        usable = [entry["id"] for entry in entries if entry["usable"]]
        if usable:
            return _json({"status": "ok", "models": usable})
        reason = self._watch.agent_missing or "No replica is ready."
        error = ApiError(reason, status=503, retry_after_s=RETRY_AFTER_AGENT_S)
        return _json({"status": "unavailable", "reason": reason, **error.body()}, error)

    async def status(self, request: web.Request) -> web.Response:
        """Tell `gateway status` everything; other machines do not see where the replicas are."""
        if not _from_this_machine(request):
            raise ApiError("/gateway/status is for this machine only", status=403)
        return _json(
            {
                "strategy": self._config.strategy,
                "agent": "not asked"
                if not self._make_source
                else self._watch.agent_missing or "ok",
                "replicas": self._router.view(time.monotonic()),
            }
        )

    def _model(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": entry["id"],
            "object": "model",
            "created": int(entry["first_seen"] + self._unix_offset),
            "owned_by": "covey",
            "context_length": entry["context"],
            "covey": {"replicas": entry["replicas"], "usable": entry["usable"]},
        }


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into OpenAI's error form, or that of the path's dialect."""
    allowed = None
    try:
        return await handler(request)
    except ApiError as error:
        refusal = error
    except web.HTTPException as error:
        texts = {
            404: f"There is no {request.path} here",
            405: f"{request.path} does not take {request.method}",
            413: f"The request's body is larger than {MAX_BODY_BYTES} bytes",
        }
        refusal = ApiError(texts.get(error.status, error.reason), status=error.status)
        allowed = error.headers.get("Allow")
    except Exception:
        _log.exception("internal error path=%s", request.path)
        refusal = ApiError("internal error", status=500)
    response = _refused(refusal, DIALECTS.get(request.path))
    if allowed is not None:
        response.headers["Allow"] = allowed
    return response


def _refused(error: ApiError, dialect: Dialect | None) -> web.Response:
    if dialect is None:
        return _json(error.body(), error)
    return _response(dialect.error(error.status, error.line(), error.kind), error)


def _json(body: dict[str, Any], error: ApiError | None = None) -> web.Response:
    return _response(msgspec.json.encode(body), error)


def _response(body: bytes, error: ApiError | None) -> web.Response:
    response = web.Response(
        body=body,
        status=error.status if error else 200,
        content_type="application/json",
    )
    if error is not None and error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def _from_this_machine(request: web.Request) -> bool:
    try:
        return not request.remote or ipaddress.ip_address(request.remote).is_loopback
    except ValueError:
        return False
