"""What the gateway itself tells in other APIs than OpenAI's: which models and replicas there are.

And which APIs. A shell around `dialects/ollama_models.py`, `dialects/foundation.py` and `openapi/`,
used by `app.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec
from aiohttp import web

from gateway.attached import BODY
from gateway.dialects import foundation, ollama_models
from gateway.dialects.port import Refused
from gateway.errors import ApiError
from gateway.openapi.document import document
from gateway.routing import Router


class Listings:
    """The handlers; `unix_offset` added to the router's clock is unix seconds.

    `replicas` returns what all workers know of them (`Standing.replicas`).
    """

    def __init__(
        self, router: Router, unix_offset: float, replicas: Callable[[], list[dict[str, Any]]]
    ) -> None:
        self._router = router
        self._unix_offset = unix_offset
        self._replicas = replicas

    def add_to(self, routes: web.UrlDispatcher) -> None:
        """Serve them all."""
        routes.add_get("/", self.root)
        routes.add_get("/api/version", self.version)
        routes.add_get("/api/tags", self.tags)
        routes.add_get("/api/ps", self.running)
        routes.add_post("/api/show", self.show)
        routes.add_get("/peers", self.peers)
        routes.add_get("/peers/metrics", self.peers_metrics)
        routes.add_get("/openapi.json", self.described)

    async def root(self, request: web.Request) -> web.Response:
        """Say what Ollama's own programs look for before they ask anything; people get the page."""
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(status=302, headers={"Location": "dashboard/"})
        return web.Response(text="Ollama is running")

    async def version(self, _: web.Request) -> web.Response:
        """Tell which of Ollama's versions this speaks like."""
        return _answer(ollama_models.version())

    async def tags(self, _: web.Request) -> web.Response:
        """List the models as Ollama does."""
        models = self._router.models(time.monotonic())
        return _answer(ollama_models.tags(models, self._unix_offset))

    async def running(self, _: web.Request) -> web.Response:
        """List the models that are ready as Ollama does those that are loaded."""
        return _answer(ollama_models.running(self._router.models(time.monotonic())))

    async def show(self, request: web.Request) -> web.Response:
        """Describe a model as Ollama does."""
        models = self._router.models(time.monotonic())
        try:
            return _answer(ollama_models.show(request[BODY], models, self._unix_offset))
        except Refused as refused:
            raise ApiError(refused.message, status=refused.status) from refused

    async def peers(self, _: web.Request) -> web.Response:
        """List the replicas as Foundation42's gateway did."""
        return _answer(foundation.peers(self._replicas()))

    async def peers_metrics(self, _: web.Request) -> web.Response:
        """Tell how the replicas do as Foundation42's gateway did."""
        return _answer(foundation.peers_metrics(self._replicas()))

    async def described(self, _: web.Request) -> web.Response:
        """Describe all that is served (OpenAPI)."""
        return _answer(_description())


@cache
def _description() -> bytes:
    return msgspec.json.encode(document(version("covey")))


def _answer(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
