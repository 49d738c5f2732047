"""The dashboard's routes at the gateway: look, and with an admin key plan, deploy and undeploy.

A shell over `view.py` and the agent's client, used by `app.py`. What is done is done by the agent
on this machine; the gateway only says who may ask for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import msgspec
from aiohttp import web

from agent.page.fresh import Fresh
from agent.page.overview import Overview
from agent.page.serve import ROOT, page_routes
from agent.page.shelf import Shelf
from agent.page.state import State
from gateway.answers import json_answer
from gateway.attached import BODY, KEY
from gateway.dashboard.view import usage, view, you
from gateway.errors import ApiError, EnvironmentFault
from gateway.keys.accounts import RETRY_AFTER_STORE_S, Accounts
from gateway.keys.guard import Guard
from gateway.keys.key import Key, day_of
from gateway.routing import Router
from gateway.together import Sheet
from gateway.watch import Source, Watch

_log = logging.getLogger(__name__)

# However many look at once, the agent is asked so often at most; for models every member is asked.
FRESH_S, SHELF_FRESH_S = 1.0, 5.0
# Links are measured for a plan, and the header of a model that is not here comes first.
PLAN_TIMEOUT_S = 75.0
# A page that polls had better hear soon that its agent is slow; the catalogue is planned whole.
LOOK_TIMEOUT_S, SHELF_TIMEOUT_S = 10.0, 30.0
USAGE_DAYS = 30
_NOT_UNDERSTOOD = "agent and gateway are not of the same release"


class Dashboard:
    """The handlers; `live` gives them what needs a running loop. `guard` None: no keys."""

    _source: Source | None
    _watch: Watch

    def __init__(
        self, router: Router, accounts: Accounts | None, guard: Guard | None,
        sheets: Callable[[], Sequence[Sheet]],
    ) -> None:  # fmt: skip
        self._router = router
        self._accounts = accounts
        self._guard = guard
        self._sheets = sheets
        self._mesh = Fresh(self._look, FRESH_S)
        self._shelf = Fresh(lambda: self._ask(Shelf, "/v1/shelf", SHELF_TIMEOUT_S), SHELF_FRESH_S)

    def add_to(self, routes: web.UrlDispatcher) -> None:
        """Serve them all."""
        routes.add_routes(page_routes(self.state, self.shelf))
        routes.add_get(f"{ROOT}/usage", self.usage)
        routes.add_post(f"{ROOT}/plan", self.plan)
        routes.add_post(f"{ROOT}/deployments", self.deploy)
        routes.add_delete(f"{ROOT}/deployments/{{name}}", self.undeploy)

    def live(self, source: Source | None, watch: Watch) -> None:
        """Begin to answer; `source` None: there is no agent to ask."""
        self._source, self._watch = source, watch

    async def state(self, request: web.Request) -> State:
        """Return what the page polls."""
        key = request.get(KEY)
        mesh, missing = await self._mesh.get()
        agent = "not asked" if not self._watch.asks_agent else self._watch.agent_missing or "ok"
        return State(
            served_by="gateway",
            mesh=mesh,
            missing=missing,
            gateway=view(
                self._sheets(), time.monotonic(), strategy=self._router.strategy, agent=agent,
                keys_required=self._guard is not None and self._guard.required, key=key,
            ),
            you=you(
                key, has_store=self._accounts is not None, agent_node=mesh.name if mesh else "",
                may_deploy=mesh.may_deploy if mesh else None,
                takes_orders=mesh is None or mesh.takes_orders,
            ),
        )  # fmt: skip

    async def shelf(self, _: web.Request) -> bytes:
        """Return which models the mesh has and could run."""
        return msgspec.json.encode(await self._shelf.get())

    async def usage(self, request: web.Request) -> web.Response:
        """Tell what the asker's key used of late, or all keys where it is an admin's."""
        key: Key | None = request.get(KEY)
        if key is None or self._accounts is None:
            raise _needs_key("Usage is told to the key whose it is, or to an admin key")
        first = datetime.now(UTC) - timedelta(days=USAGE_DAYS - 1)
        try:
            rows = await self._accounts.usage(
                day_of(first.timestamp()), "" if key.admin else key.id
            )
        except EnvironmentFault as error:
            raise ApiError(
                "The store of keys is out of reach", status=503, hint=error.message + ".",
                retry_after_s=RETRY_AFTER_STORE_S,
            ) from error  # fmt: skip
        return json_answer({"days": USAGE_DAYS, "all": key.admin, "usage": usage(rows)})

    async def plan(self, request: web.Request) -> web.Response:
        """Say how a model would run."""
        self._admin(request)
        return json_answer(await self._call("POST", "/v1/plan", _body(request)))

    async def deploy(self, request: web.Request) -> web.Response:
        """Say that a model shall run."""
        key, body = self._admin(request), _body(request)
        answer = await self._call("POST", "/v1/deployments", body)
        _log.info("deployed name=%s key=%s", answer.get("name"), key.name)
        return json_answer({"name": answer["name"], "rings": answer["rings"]})

    async def undeploy(self, request: web.Request) -> web.Response:
        """End a deployment."""
        key, name = self._admin(request), request.match_info["name"]
        answer = await self._call("DELETE", f"/v1/deployments/{quote(name, safe='')}")
        _log.info("undeployed name=%s key=%s", name, key.name)
        return json_answer({"name": answer["name"], "phase": answer["phase"]})

    def _admin(self, request: web.Request) -> Key:
        """Return the key of who asks if it may act; raises ApiError."""
        key: Key | None = request.get(KEY)
        if key is None:
            raise _needs_key("This needs an admin key")
        if not key.admin:
            raise ApiError(
                f"The API key {key.name} may not do this",
                status=403,
                hint="`gateway keys create NAME --admin` makes one that may.",
                code="not_admin",
            )
        return key

    async def _look(self) -> tuple[Overview | None, str]:
        """Return the mesh, or why it cannot be told."""
        try:
            return await self._ask(Overview, "/v1/overview", LOOK_TIMEOUT_S), ""
        except ApiError as error:
            return None, error.line()

    async def _ask(self, kind: type[Any], path: str, timeout_s: float) -> Any:
        answer = await self._call("GET", path, timeout_s=timeout_s)
        try:
            return msgspec.convert(answer, kind)
        except msgspec.ValidationError as error:
            raise ApiError(
                f"What the agent tells is not understood: {_NOT_UNDERSTOOD} ({error})", status=503
            ) from error

    async def _call(
        self, method: str, path: str, body: Any = None, timeout_s: float = PLAN_TIMEOUT_S
    ) -> Any:
        if self._source is None:
            raise ApiError("This gateway has no agent to ask", status=503)
        return await self._source.call(method, path, body, timeout_s)


def _body(request: web.Request) -> Any:
    try:
        body = msgspec.json.decode(request[BODY])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"The request's body is no JSON: {error}", status=400) from error
    if not isinstance(body, dict):
        raise ApiError("The request's body is no JSON object", status=400)
    return body


def _needs_key(message: str) -> ApiError:
    return ApiError(
        message, status=401, hint="Send one as `Authorization: Bearer ck-…`.",
        code="invalid_api_key",
    )  # fmt: skip
