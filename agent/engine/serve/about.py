"""What a server says of its one model: /v1/models, /health, and refusals by name or state.

/health has `running` too: how many requests are being answered or wait, so that the agent may wait
for the last one; and each answer says so in `x-covey-load`, itself among them, so that a gateway
knows what others have here (`gateway/routing/others.py`).

Used by `app.py` (text) and `embeddings.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from agent.engine.generation import Served
from agent.engine.serve import openai
from agent.engine.serve.http import RETRY_AFTER_S, reply
from agent.engine.serve.openai import ApiError
from agent.errors import NotRunning

LOAD = "x-covey-load"
_COUNTED = web.RequestKey("counted", bool)


class About:
    """Answers for `model`, which has these capabilities (the names of its endpoints)."""

    def __init__(self, model: Served, capabilities: Sequence[str]) -> None:
        self._model = model
        self._capabilities = list(capabilities)
        self._running = 0

    @web.middleware
    async def count(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Count the requests that are being answered: those that ask the model for something."""
        if request.method != "POST":
            return await handler(request)
        self._running += 1
        request[_COUNTED] = True
        try:
            return await handler(request)
        finally:
            self._running -= 1
            request[_COUNTED] = False

    async def tell(self, request: web.Request, response: web.StreamResponse) -> None:
        """Say in an answer how many requests are here; a signal of aiohttp's."""
        counted = request.get(_COUNTED)
        if counted is not None:  # an answer in one piece leaves when it is counted no more
            response.headers[LOAD] = str(self._running + (not counted))

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes that every model's server has."""
        router.add_get("/v1/models", self._all)
        router.add_get("/v1/models/{id:.+}", self._one)
        router.add_get("/health", self._health)

    def refuse(self, router: web.UrlDispatcher, path: str, wanted: str) -> None:
        """Have `path` answer that this model cannot do what is `wanted` there."""

        async def refused(_: web.Request) -> web.Response:
            raise ApiError(
                f"The model {self._model.name!r} does not do {wanted}; it is for "
                + " and ".join(self._capabilities),
                hint="Ask another model; /v1/models says what each can do.",
                param="model",
                code="unsupported_model",
            )

        router.add_post(path, refused)

    def check_name(self, name: str) -> None:
        """Raise ApiError unless the model is called so."""
        if name != self._model.name:
            raise ApiError(
                f"The model {name!r} does not exist here; this server has {self._model.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def check_ready(self) -> None:
        """Raise NotRunning unless requests can be served."""
        state, reason = self._model.state()
        if state != "ready":
            raise self._not_ready(state, reason)

    def _not_ready(self, state: str, reason: str) -> NotRunning:
        return NotRunning(f"The model {self._model.name} is {state}: {reason or 'no reason given'}")

    async def _health(self, _: web.Request) -> web.Response:
        state, reason = self._model.state()
        if state == "ready":
            return reply(
                {"status": "ok", "model": self._model.name, "context": self._model.context,
                 "running": self._running}
            )  # fmt: skip
        body = openai.error_body(self._not_ready(state, reason))
        said = {"status": state, "reason": reason, "running": self._running, **body}
        return reply(said, 503, RETRY_AFTER_S)

    async def _all(self, _: web.Request) -> web.Response:
        return reply({"object": "list", "data": [self._object()]})

    async def _one(self, request: web.Request) -> web.Response:
        self.check_name(request.match_info["id"])
        return reply(self._object())

    def _object(self) -> openai.Json:
        model = self._model
        return openai.model_object(model.name, model.created, model.context, self._capabilities)
