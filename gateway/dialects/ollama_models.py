"""Ollama's /api/tags, /api/show, /api/ps and /api/version, of what the router knows.

A core, wired by `app.py`. `entries` are those of `Router.models`; `unix_offset` is what makes unix
seconds of their times. What the gateway does not know of a model is empty or 0: its family, its
parameters, its quantization, its file's size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.dialects.names import resolve
from gateway.dialects.ollama_requests import timestamp
from gateway.dialects.port import Refused

# The release of Ollama whose API this follows; clients ask it to know what they may use.
VERSION = "0.13.0"
# Some clients look for "<architecture>.context_length" and nothing else.
ARCHITECTURE = "covey"
# A model stays until the mesh is told otherwise; Ollama gives those a year far away as well.
NEVER = "2318-01-01T00:00:00Z"

Json = dict[str, Any]


class _Show(msgspec.Struct, frozen=True):
    model: str = ""
    name: str = ""  # before it was called `model`


_decode_show = msgspec.json.Decoder(_Show).decode


def version() -> bytes:
    """Return the answer of GET /api/version."""
    return msgspec.json.encode({"version": VERSION})


def tags(entries: Iterable[Json], unix_offset: float) -> bytes:
    """Return the answer of GET /api/tags: every model that a replica has."""
    models = [
        _listed(entry) | {"modified_at": timestamp(entry["first_seen"] + unix_offset)}
        for entry in entries
    ]
    return msgspec.json.encode({"models": models})


def running(entries: Iterable[Json]) -> bytes:
    """Return the answer of GET /api/ps: every model that can be asked now."""
    models = [
        _listed(entry)
        | {"expires_at": NEVER, "size_vram": 0, "context_length": entry["context"] or 0}
        for entry in entries
        if entry["usable"]
    ]
    return msgspec.json.encode({"models": models})


def show(body: bytes, entries: Iterable[Json], unix_offset: float) -> bytes:
    """Return the answer of POST /api/show; raises Refused."""
    try:
        ask = _decode_show(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"invalid request: {error}") from error
    asked = ask.model or ask.name
    if not asked:
        raise Refused(400, "model is required")
    known = {entry["id"]: entry for entry in entries}
    entry = known.get(resolve(asked, known))
    if entry is None:
        raise Refused(404, f"model '{asked}' not found")
    context = entry["context"]
    info: Json = {"general.architecture": ARCHITECTURE, "general.basename": entry["id"]}
    if context:
        info[f"{ARCHITECTURE}.context_length"] = context
    return msgspec.json.encode(
        {
            "modelfile": f"# served by {', '.join(entry['replicas'])}\nFROM {entry['id']}\n",
            "parameters": f"num_ctx {context}" if context else "",
            "template": "",
            "details": _details(),
            "model_info": info,
            "capabilities": ["completion", "vision"] if entry["sees"] else ["completion"],
            "modified_at": timestamp(entry["first_seen"] + unix_offset),
        }
    )


def _listed(entry: Json) -> Json:
    name: str = entry["id"]
    return {
        "name": name,
        "model": name,
        "size": 0,
        # Of the name, not of the file, which the gateway has never seen: clients tell models apart
        # by it, and Ollama's own shows its first twelve digits.
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": _details(),
    }


def _details() -> Json:
    return {
        "parent_model": "",
        "format": "",
        "family": ARCHITECTURE,
        "families": [ARCHITECTURE],
        "parameter_size": "",
        "quantization_level": "",
    }
