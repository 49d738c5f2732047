"""The dashboard, for looking: the page that the gateway serves too (`agent/page/`), without a chat.

A shell over what the local API tells. Nothing can be done here: there is no key that could say who
may, and the listener takes GET alone.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from aiohttp import web

from agent.errors import CoveyError
from agent.page.fresh import Fresh
from agent.page.overview import Overview
from agent.page.serve import NotToldError, page_routes
from agent.page.state import State, You

# However many look at once, members are asked so often at most.
FRESH_S, SHELF_FRESH_S = 1.0, 5.0
_NEEDS = "The agent's page is for looking."


class Source(Protocol):
    """What the page needs of `answers.Answers`."""

    async def overview(self) -> dict[str, Any]:
        """Describe the mesh in one piece."""

    async def shelf(self) -> dict[str, Any]:
        """Describe the models that there are and could be."""


def routes(source: Source) -> list[web.RouteDef]:
    """Return the page's routes, and the way to it from `/`."""

    overview = Fresh(source.overview, FRESH_S)
    models = Fresh(source.shelf, SHELF_FRESH_S)

    async def state(_: web.Request) -> State:
        try:
            mesh, missing = msgspec.convert(await overview.get(), Overview), ""
        except CoveyError as error:
            mesh, missing = None, error.line()
        return State("agent", mesh, missing, None, You(needs=_NEEDS))

    async def shelf(_: web.Request) -> bytes:
        try:
            return msgspec.json.encode(await models.get())
        except CoveyError as error:
            raise NotToldError(error.line()) from error

    return [web.get("/", _to_page), *page_routes(state, shelf)]


async def _to_page(_: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "dashboard/"})
