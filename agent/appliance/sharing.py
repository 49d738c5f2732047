"""What an appliance gives other members on its overlay address: its version, signed, and how it is.

    GET /appliance           {"version": …, "standing": …}, as `rings.Standing` names it
    GET /appliance/update    the signed update to the version that runs; Range as HTTP has it

WireGuard has said who asks, and whoever takes the update verifies it. The daemon gives the routes
to the server that also serves models and stages.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from aiohttp import web

from agent.appliance import door
from agent.errors import CoveyError

# Each takes a process on the appliance; who has to wait asks another member, or later.
_MOST_AT_ONCE = 2
_RANGE = re.compile(r"bytes=(\d{1,13})-(\d{1,13})?")


def routes() -> list[web.RouteDef]:
    """Return what answers members; on a machine that is no appliance nothing is found."""
    free = asyncio.Semaphore(_MOST_AT_ONCE)

    async def describe(_: web.Request) -> web.StreamResponse:
        async with free:
            try:
                found = await door.ask("status")
            except CoveyError as error:
                raise web.HTTPNotFound(text=f"{error.message}\n") from None
        return web.json_response({"version": found["version"], "standing": standing(found)})

    async def update(request: web.Request) -> web.StreamResponse:
        found = _RANGE.fullmatch(request.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        if free.locked():
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "10"})
        async with free:
            try:
                async with door.given(start) as (facts, chunks):
                    size = facts["size"]
                    if start >= size:
                        raise web.HTTPRequestRangeNotSatisfiable
                    last = min(int(found[2]), size - 1) if found and found[2] else size - 1
                    headers = {"ETag": f'"{facts["etag"]}"'}
                    if found:
                        headers["Content-Range"] = f"bytes {start}-{last}/{size}"
                    response = web.StreamResponse(status=206 if found else 200, headers=headers)
                    left = response.content_length = last - start + 1
                    await response.prepare(request)
                    async for chunk in chunks:
                        await response.write(chunk[:left])
                        left -= len(chunk[:left])
                        if not left:
                            break
                    await response.write_eof()
                    return response
            except CoveyError as error:
                raise web.HTTPNotFound(text=f"{error.message}\n") from None

    return [web.get("/appliance", describe), web.get("/appliance/update", update)]


def standing(status: dict[str, Any]) -> str:
    """Return in one word how an appliance is, by what its updater says."""
    if status["trial"] is not None:
        return "trial"
    if status["leaving"]:
        return "leaving"
    if status["writing"]:
        return "writing"
    return "written" if status["next"] != status["slot"] else "good"
