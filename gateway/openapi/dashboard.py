"""The dashboard's own endpoints. A core, data alone. Used by `document.py`.

What the page polls is described by the types that it is made of (`agent/page/`).
"""

from __future__ import annotations

import msgspec

from agent.page.shelf import Shelf
from agent.page.state import State
from gateway.openapi.openai import ERROR
from gateway.openapi.words import (
    ANY,
    COUNT,
    FLAG,
    JSON,
    NAME,
    TEXT,
    Json,
    Said,
    in_path,
    many,
    ref,
    tell,
    thing,
    words,
)

TAG = "Dashboard"
_PREFIX = "Dashboard"
_HTML = "text/html"
# What the agent says no with, besides what the gateway does.
_ACT = ("400", "403", "408", "413")


def _types() -> Json:
    """Return the schemas of the page's state and shelf, and of all that is in them."""
    _, found = msgspec.json.schema_components(
        (State, Shelf), ref_template=f"#/components/schemas/{_PREFIX}{{name}}"
    )
    return {f"{_PREFIX}{name}": schema for name, schema in found.items()}


def _open(operation: Json) -> Json:
    """Return the description of what needs no key and asks nobody."""
    for status in ("401", "503"):
        del operation["responses"][status]
    return operation | {"security": []}


def _may_be(operation: Json, status: str, about: str, **more: Json) -> Json:
    operation["responses"][status] = {"description": about, **more}
    return operation


def _leads(operation: Json) -> Json:
    """Return the description of what only leads to the page."""
    del operation["responses"]["200"]
    return _open(_may_be(operation, "302", "To the page."))


def _acts(operation: Json) -> Json:
    """Return the description of what the agent does: other members have a say in that."""
    refusal = {JSON: {"schema": ref(ERROR.schema)}}
    return _may_be(operation, "502", "Another node, or an engine, failed.", content=refusal)


_PLACING = {"requestBody": {"required": True, "content": {JSON: {"schema": ref("Placing")}}}}

SCHEMAS: Json = _types() | {
    "Placing": thing(
        {"model": NAME},
        {
            "name": TEXT,
            "nodes": {"type": ["integer", "null"], "minimum": 1},
            "rings": {"type": ["integer", "null"], "minimum": 1},
            "context": COUNT,
            "objective": words("auto", "latency", "throughput"),
        },
    )
    | {"additionalProperties": False},
    "DashboardUsage": thing(
        {
            "days": COUNT,
            "all": FLAG,
            "usage": many(
                thing(
                    {
                        "day": NAME, "key_id": NAME, "key": TEXT, "model": TEXT, "requests": COUNT,
                        "prompt_tokens": COUNT, "completion_tokens": COUNT,
                        "estimated_requests": COUNT,
                    }
                )
            ),
        }
    ),
}  # fmt: skip

PATHS: Json = {
    "/dashboard": {
        "get": _leads(
            tell("dashboard", "Lead to the page.", Said("The page.", TEXT, _HTML), ERROR, TAG)
        )
    },
    "/dashboard/": {
        "get": _open(
            tell("dashboardPage", "Show the mesh.", Said("The page.", TEXT, _HTML), ERROR, TAG)
        )
    },
    "/dashboard/files/{name}": {
        "get": _open(
            tell(
                "dashboardFile", "Give a part of the page.", Said("It.", TEXT, "text/css"), ERROR,
                TAG, also=("404",),
            )
        ),
        **in_path("name", "The file's name.", words("page.css")),
    },
    "/dashboard/state": {
        "get": _may_be(
            tell(
                "dashboardState", "Tell all that the page shows: mesh, gateway, who asks.",
                Said("How it stands.", ref("DashboardState")), ERROR, TAG,
            ),
            "304", "As it was (ETag).",
        )
    },
    "/dashboard/catalogue": {
        "get": _acts(
            tell(
                "dashboardShelf", "Tell which models the mesh has, and which it could run.",
                Said("The models.", ref("DashboardShelf")), ERROR, TAG, also=("400", "403"),
            )
        )
    },
    "/dashboard/usage": {
        "get": tell(
            "dashboardUsage", "Tell what the key used of late; an admin key, what all did.",
            Said("By day, key and model.", ref("DashboardUsage")), ERROR, TAG,
        )
    },
    "/dashboard/plan": {
        "post": _acts(
            tell(
                "dashboardPlan", "Say how a model would run, how fast, and why; for admin keys.",
                Said("The plan.", thing({"model": NAME, "context": COUNT})), ERROR, TAG,
                also=_ACT, more=_PLACING,
            )
        )
    },
    "/dashboard/deployments": {
        "post": _acts(
            tell(
                "dashboardDeploy", "Have a model run; for admin keys.",
                Said("It is on its way.", thing({"name": NAME, "rings": COUNT})), ERROR, TAG,
                also=_ACT, more=_PLACING,
            )
        )
    },
    "/dashboard/deployments/{name}": {
        "delete": _acts(
            tell(
                "dashboardUndeploy", "End a deployment; for admin keys.",
                Said("It is ended, or will be.", thing({"name": NAME, "phase": ANY})), ERROR, TAG,
                also=("400", "403"),
            )
        ),
        **in_path("name", "The deployment's name.", {"type": "string", "maxLength": 64}),
    },
}  # fmt: skip
