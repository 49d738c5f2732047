"""The gateway's HTTP surface: routes, what it answers itself, and OpenAI's form for errors.

A shell, run by `serve.py` (and by tests) with an AppRunner whose `handler_cancellation` is on, so
that a client that leaves cancels its request at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any

import aiohttp
from aiohttp import web

from agent.page import serve as page
from gateway.answers import answer as _response
from gateway.answers import json_answer as _json
from gateway.attached import KEY
from gateway.bounds import Bounds
from gateway.browsers import foreign
from gateway.config import Config, reloaded, share
from gateway.dashboard.handlers import Dashboard
from gateway.dialects.port import Dialect
from gateway.dialects.served import DIALECTS, by_name
from gateway.errors import ApiError
from gateway.exchange import Exchanges
from gateway.gate import Gate
from gateway.keys.accounts import Accounts
from gateway.keys.guard import Guard
from gateway.keys.store import Store
from gateway.listings import Listings
from gateway.observe import Observer, refused
from gateway.proxy import Proxy
from gateway.routing import Replica, Router, UnknownModel
from gateway.sockets import connector
from gateway.standing import Standing
from gateway.upstream import Upstream
from gateway.watch import Source, Watch
from gateway.worker import Worker

_log = logging.getLogger(__name__)

_SKIPPED_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(
    config: Config,
    make_source: Callable[[], Source] | None,
    store: Store | None = None,
    *,
    require_keys: bool = False,
    worker: Worker | None = None,
) -> web.Application:
    """Return the application; `make_source` is called in the running loop, None: no agent.

    `store`: where keys and usage are, None: nowhere, and none are required. `require_keys` is the
    configuration's, decided (`keys.start`); `worker`: which of several processes this is.
    `app[GATEWAY].reload` takes another configuration.
    """
    before = worker.before() if worker is not None else None
    accounts = Accounts(store, before.gateway if before else "") if store is not None else None
    guard = Guard(accounts, required=require_keys) if accounts is not None else None
    gateway = Gateway(config, make_source, accounts, guard, worker)
    keyed = (
        (guard.identify, gateway.own_pages, gateway.bounds.serve, guard.count)
        if guard is not None
        else None
    )
    app = web.Application(
        client_max_size=config.max_body_bytes,
        middlewares=[
            gateway.observer.note,
            _errors,
            *(keyed or (gateway.own_pages, gateway.bounds.serve)),
        ],
    )
    app[GATEWAY] = gateway
    app.on_response_prepare.append(gateway.bounds.note_answer)
    app.on_response_prepare.append(gateway.observer.began)
    if guard is not None:
        app.on_response_prepare.append(guard.headers)
    app.cleanup_ctx.append(gateway.live)
    app.router.add_post("/v1/chat/completions", gateway.forward)
    app.router.add_post("/v1/completions", gateway.forward)
    app.router.add_post("/v1/embeddings", gateway.forward)
    app.router.add_post("/v1/rerank", gateway.forward)
    app[_DIALECTS] = gateway.dialects
    for path in gateway.dialects:
        app.router.add_post(path, gateway.translate)
    gateway.listings.add_to(app.router)
    app.router.add_route("*", "/v1/responses/{id:resp_.+}", gateway.not_kept)
    app.router.add_get("/v1/models", gateway.models)
    app.router.add_get("/v1/models/{id:.+}", gateway.model)
    gateway.standing.add_to(app.router)
    gateway.dashboard.add_to(app.router)
    return app


class Gateway:
    """The handlers; `live` gives them what needs a running loop."""

    _proxy: Proxy
    _watch: Watch

    def __init__(
        self,
        config: Config,
        make_source: Callable[[], Source] | None,
        accounts: Accounts | None,
        guard: Guard | None,
        worker: Worker | None,
    ) -> None:
        self._config = config
        self._number = worker.number if worker is not None else 1
        self._make_source = make_source
        self._accounts = accounts
        self._guard = guard
        self.bounds = Bounds(share(config, self._number))
        self._router = Router(config.strategy, Random())  # noqa: S311  # a choice, not a secret
        self.observer = Observer(config, self._router, worker)
        self.standing = Standing(self._router, self.observer, accounts, guard, worker)
        # The router's clock does not go back; clients want unix seconds.
        self._unix_offset = time.time() - time.monotonic()
        self.dashboard = Dashboard(self._router, accounts, guard, self.standing.sheets)
        self.listings = Listings(self._router, self._unix_offset, self.standing.replicas)
        self._names: frozenset[str] = frozenset()
        self.dialects = DIALECTS | by_name(lambda: self._names)

    async def live(self, _: web.Application) -> AsyncIterator[None]:
        """Hold the connections and the watch as long as the application runs."""
        source = self._make_source() if self._make_source else None
        connections = connector()
        session = aiohttp.ClientSession(
            connector=connections,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_SKIPPED_HEADERS,
        )
        self._watch = Watch(self._router, session, source, _named(self._config))
        self.dashboard.live(source, self._watch)
        upstream = Upstream(self._router, Exchanges(connections))
        config = share(self._config, self._number)
        self._proxy = Proxy(
            self._router, self._watch, upstream, Gate(config.queue, config.queue_wait_s),
            wait_s=config.wait_s, per_replica=config.per_replica,
            hedge_percent=config.hedge_percent,
        )  # fmt: skip
        task = asyncio.create_task(self._watch.run())
        counting = asyncio.create_task(self._accounts.run()) if self._accounts else None
        try:
            async with (
                self.observer.live(session),
                self.standing.live(self._watch, lambda: self._proxy.waiting),
            ):
                yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            if source is not None:
                await source.aclose()
            await session.close()
            if self._accounts is not None and counting is not None:
                await self._accounts.aclose(counting)

    @web.middleware
    async def own_pages(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Refuse what other web sites' pages ask, where no key has to be shown; raises ApiError."""
        if KEY not in request and (self._guard is None or not self._guard.required):
            changes = request.method not in ("GET", "HEAD")
            shows = request.path.startswith(page.ROOT)
            if foreign(request.headers, changes=changes, shows=shows):
                raise ApiError(
                    "This gateway asks for no key, and so answers no other web site's pages",
                    status=403,
                    hint="Ask by an address, or send a key (`gateway keys create NAME`).",
                    code="foreign_page",
                )
        return await handler(request)

    async def begun(self, timeout_s: float) -> None:
        """Wait until replicas were checked and keys read once, so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._watch.first_round_done.wait()
                if self._accounts is not None:
                    await self._accounts.first_round_done.wait()

    def reload(self, config: Config, *, require_keys: bool) -> tuple[list[str], list[str]]:
        """Take what a running gateway can of `config`; see `config.reloaded` for what is returned.

        Requests that run end as they began.
        """
        self._config, taken, fixed = reloaded(self._config, config)
        self.bounds.config = share(self._config, self._number)
        self._router.strategy = self._config.strategy
        self._proxy.wait_s = self._config.wait_s
        self._proxy.hedge(self._config.hedge_percent)
        self.observer.reopen()
        if self._guard is not None:
            self._guard.required = require_keys
        for change in self._router.update("named", _named(self._config), time.monotonic()):
            _log.info(change)
        return taken, fixed

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """Serve a request by a replica."""
        return await self._proxy.handle(request)

    async def translate(self, request: web.Request) -> web.StreamResponse:
        """Serve a request in another API than OpenAI's by a replica."""
        # A snapshot: large bodies are translated in threads.
        models = self._router.models(time.monotonic())
        self._names = frozenset(entry["id"] for entry in models)
        return await self._proxy.handle(request, self.dialects[request.path])

    async def not_kept(self, _: web.Request) -> web.Response:
        """Say that there is no Response to be got."""
        raise ApiError(
            "Responses are not kept here, whatever `store` says",
            status=404,
            hint="Keep them yourself and send them again as `input`.",
        )

    async def models(self, _: web.Request) -> web.Response:
        """Tell which models there are."""
        models = [self._model(entry) for entry in self._router.models(time.monotonic())]
        return _json({"object": "list", "data": models})

    async def model(self, request: web.Request) -> web.Response:
        """Tell of one model."""
        name = request.match_info["id"]
        entries = self._router.models(time.monotonic())
        for entry in entries:
            if entry["id"] == name:
                return _json(self._model(entry))
        raise self._proxy.refusal(name, UnknownModel(tuple(entry["id"] for entry in entries)))

    def _model(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": entry["id"],
            "object": "model",
            "created": int(entry["first_seen"] + self._unix_offset),
            "owned_by": "covey",
            "context_length": entry["context"],
            # OpenRouter's words, which other gateways and clients look for.
            "architecture": {"input_modalities": ["text", "image"] if entry["sees"] else ["text"]},
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
            413: f"The request's body is larger than {request.client_max_size} bytes",
        }
        refusal = ApiError(texts.get(error.status, error.reason), status=error.status)
        allowed = error.headers.get("Allow")
    except Exception:
        _log.exception("internal error path=%s", request.path)
        refusal = ApiError("internal error", status=500)
    refused(request, refusal)
    response = _refused(refusal, _form(request))
    if allowed is not None:
        response.headers["Allow"] = allowed
    return response


def _named(config: Config) -> list[Replica]:
    """Return the outside servers that the operator names."""
    return [
        Replica(name, url, "named", vision=name in config.vision)
        for name, url in config.replicas.items()
    ]


def _form(request: web.Request) -> Dialect | None:
    """Return whose form an error is to have; all of Ollama's endpoints have the same."""
    found = request.app[_DIALECTS]
    path = "/api/chat" if request.path.startswith("/api/") else request.path
    return found.get(path)


def _refused(error: ApiError, dialect: Dialect | None) -> web.Response:
    if dialect is None:
        return _json(error.body(), error)
    return _response(dialect.error(error.status, error.line(), error.kind, error.param), error)


GATEWAY = web.AppKey("gateway", Gateway)
_DIALECTS: web.AppKey[dict[str, Dialect]] = web.AppKey("dialects", dict)
