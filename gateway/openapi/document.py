"""The whole description, of all the modules beside it. A core, used by `listings.py` and tests."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.openapi import anthropic, dashboard, ollama, openai, own, responses
from gateway.openapi.words import COMPONENTS, SECURITY, Json

_ABOUT = """\
One address for the models of a Covey mesh, in the APIs that clients speak. A request goes to one
of the model's replicas, which `x-covey-replica` names. What OpenAI's endpoints take and answer is
the replica's and is passed on as it comes, unknown fields too: described here is what the mesh's
own heads do. The errors of each API have its own form.
"""


def document(version: str) -> Json:
    """Return the description, OpenAPI 3.1, of the gateway of this version."""
    modules = (openai, responses, anthropic, ollama, own, dashboard)
    tags = dict.fromkeys((openai.TAG, anthropic.TAG, ollama.TAG, *own.TAGS, dashboard.TAG))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Covey gateway",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "AGPL-3.0-or-later", "identifier": "AGPL-3.0-or-later"},
        },
        "servers": [{"url": "/"}],
        "security": SECURITY,
        "tags": [{"name": tag} for tag in tags],
        "paths": _together(module.PATHS for module in modules),
        "components": {**COMPONENTS, "schemas": _together(module.SCHEMAS for module in modules)},
    }


def _together(parts: Iterable[Json]) -> Json:
    found: Json = {}
    for part in parts:
        found |= part
    return found
