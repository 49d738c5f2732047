"""Models for other members, over HTTP on the overlay address: the manifest, and the file in ranges.

    GET /models/ID/manifest    JSON (`manifest.py`)
    GET /models/ID/file        the file; Range, ETag and If-Range as HTTP has them
    GET /models/ID/file/2      the second file of a split model

WireGuard has said who asks: whoever reaches the address is a member. Used by `service.py`; the
daemon gives the routes to the server that also serves stages.
"""

from __future__ import annotations

from aiohttp import web

from agent.models import manifest as manifests
from agent.models.messages import MAX_MODELS, Held, Models
from agent.models.store import Record, Store


def routes(store: Store) -> list[web.RouteDef]:
    """Return what answers members."""

    def found(request: web.Request) -> tuple[str, Record]:
        model = store.by_id(request.match_info["id"])
        if model is None:
            raise web.HTTPNotFound(text="no such model here\n")
        return model

    async def manifest(request: web.Request) -> web.StreamResponse:
        _, record = found(request)
        body = manifests.encode(record.manifest)
        return web.Response(body=body, content_type="application/json")

    async def file(request: web.Request) -> web.StreamResponse:
        files = store.files(found(request)[0])
        number = int(request.match_info.get("number", "1"))
        if not 1 <= number <= len(files):
            raise web.HTTPNotFound(text="the model has no such file\n")
        return web.FileResponse(files[number - 1])

    return [
        web.get("/models/{id}/manifest", manifest),
        web.get("/models/{id}/file", file),
        web.get(r"/models/{id}/file/{number:\d{1,4}}", file),
    ]


def told(store: Store) -> Models:
    """Return the whole models here, as members are told of them."""
    whole = [
        Held(store.ids[name], record.manifest.sha256, name, record.manifest.size)
        for name, record in sorted(store.records.items())
        if store.whole(name)
    ]
    return Models(tuple(whole[:MAX_MODELS]))
