"""The dashboard's routes: the page's files, its state, and the models that the mesh could run.

A shell, mounted by the gateway (`gateway/dashboard/`) and by the agent's HTTP listener. Whoever
mounts it decides who may look; the files hold nothing that is secret.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import hdrs, web

from agent.page.files import HEADERS, INDEX, files
from agent.page.state import State, encoded

ROOT = "/dashboard"
# Open to all: who has yet to type a key needs the page to do so.
OPEN = frozenset({ROOT, f"{ROOT}/"})
FILES = f"{ROOT}/files/"
JSON = "application/json"
# Compressing less than this saves no packet.
_LEAST_COMPRESSED_BYTES = 1200

States = Callable[[web.Request], Awaitable[State]]
Bodies = Callable[[web.Request], Awaitable[bytes]]


class NotToldError(Exception):
    """What was asked for cannot be told now; its text says why, for people."""


def page_routes(state: States, catalogue: Bodies) -> list[web.RouteDef]:
    """Return the page's routes: it polls `state`, and asks for the `catalogue` (JSON) at times.

    The latter may raise NotToldError, and both what their server turns into an answer itself.
    """

    async def told(request: web.Request) -> web.Response:
        body, etag = encoded(await state(request))
        return _answer(request, body, JSON, etag)

    async def models(request: web.Request) -> web.Response:
        try:
            body = await catalogue(request)
        except NotToldError as error:
            body = msgspec.json.encode({"error": {"message": str(error)}})
            return web.Response(status=503, body=body, headers=HEADERS, content_type=JSON)
        return _answer(request, body, JSON, "")

    return [
        web.get(ROOT, _to_page),
        web.get(f"{ROOT}/", _index),
        web.get(f"{FILES}{{name}}", _file),
        web.get(f"{ROOT}/state", told),
        web.get(f"{ROOT}/catalogue", models),
    ]


def is_open(path: str) -> bool:
    """Say whether a path is the page itself, which holds no secret."""
    return path in OPEN or path.startswith(FILES)


def _answer(request: web.Request, body: bytes, media: str, etag: str) -> web.Response:
    """Return bytes under the page's headers, or 304 where the browser has those of this ETag.

    The files are taken from a cache only after asking; what the mesh tells is in none.
    """
    caching = "no-store" if media == JSON else "no-cache"
    headers = {**HEADERS, "Content-Type": media, "Cache-Control": caching}
    if etag:
        headers[hdrs.ETAG] = etag
        if etag in request.headers.get(hdrs.IF_NONE_MATCH, ""):
            return web.Response(status=304, headers=headers)
    response = web.Response(body=body, headers=headers)
    if len(body) >= _LEAST_COMPRESSED_BYTES:
        response.enable_compression()
    return response


async def _to_page(_: web.Request) -> web.Response:
    # Relative: who is asked may be behind a proxy that calls it something else.
    location = "dashboard/"
    return web.Response(
        status=302, text=f"{location}\n", headers={hdrs.LOCATION: location, **HEADERS}
    )


async def _index(request: web.Request) -> web.Response:
    return _answered(request, INDEX)


async def _file(request: web.Request) -> web.Response:
    return _answered(request, request.match_info["name"])


def _answered(request: web.Request, name: str) -> web.Response:
    found = files().get(name)
    if found is None:
        raise web.HTTPNotFound
    return _answer(request, found.body, found.media, found.etag)
