"""How this node stands: GET /health and /metrics.

A shell over the registry of faults and the node's figures. As long as the agent runs /health is
200, since starting it again mends no fault; `status` there is the severest of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from agent.figures import Figures
from agent.health import Health


def routes(health: Health, figures: Callable[[], Awaitable[Figures]]) -> list[web.RouteDef]:
    """Return the pages."""

    async def show_health(_: web.Request) -> web.Response:
        items = health.items()
        told = {
            "status": items[0].severity if items else "ok",
            "items": [{"code": i.code, "severity": i.severity, "title": i.title} for i in items],
        }
        return web.Response(body=msgspec.json.encode(told), content_type="application/json")

    async def show_metrics(_: web.Request) -> web.Response:
        # An agent that nobody asks does without prometheus_client.
        from prometheus_client.process_collector import ProcessCollector

        from agent.http import exposition

        process = ProcessCollector(registry=None).collect()
        body = exposition.exposition(await figures(), process)
        return web.Response(body=body, headers={"Content-Type": exposition.CONTENT_TYPE})

    return [web.get("/health", show_health), web.get("/metrics", show_metrics)]
