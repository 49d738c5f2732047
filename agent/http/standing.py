"""How this node stands: GET /health.

A shell over the registry of faults. As long as the agent runs the answer is 200, since starting it
again mends no fault; `status` is the severest of them.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from agent.health import Health


def routes(health: Health) -> list[web.RouteDef]:
    """Return the pages."""

    async def show(_: web.Request) -> web.Response:
        items = health.items()
        told = {
            "status": items[0].severity if items else "ok",
            "items": [{"code": i.code, "severity": i.severity, "title": i.title} for i in items],
        }
        return web.Response(body=msgspec.json.encode(told), content_type="application/json")

    return [web.get("/health", show)]
