"""What a shell completes that only the running agent knows: members, deployments, models.

Quick, or nothing: a person waits for it at each press of Tab, and nobody wants to read there why
the agent does not answer. So it asks the socket by itself, without the client, which takes longer
to import than the agent to answer.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from agent import config
from agent.errors import CoveyError

# For all of it: who presses Tab sees a pause from there on.
PATIENCE_S = 0.5
_MOST_BYTES = 4 << 20
_Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


def members(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem[str]]:
    """Complete the name of a member."""
    found = _ask(ctx, "/v1/members")
    return _those(text, (one["name"] for one in found.get("members", ())))


def deployments(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem[str]]:
    """Complete the name of a deployment."""
    found = _ask(ctx, "/v1/deployments")
    return _those(text, (one["name"] for one in found.get("deployments", ())))


def stored(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem[str]]:
    """Complete the name of a model in this node's store."""
    found = _ask(ctx, "/v1/models")
    return _those(text, (one["name"] for one in found.get("models", ()) if one["here"]))


def models(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem[str]]:
    """Complete a model: one in any member's store, the bundled one, or a file."""
    if text.startswith((".", "/", "~")) or "/" in text:
        return [CompletionItem(text, type="file")]
    from agent.models.bundled import NAME

    found = _ask(ctx, "/v1/models")
    return _those(text, (NAME, *(one["name"] for one in found.get("models", ()))))


def sources(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem[str]]:
    """Complete what may be pulled: what other members have, or a file."""
    if text.startswith((".", "/", "~")) or "/" in text:
        return [CompletionItem(text, type="file")]
    found = _ask(ctx, "/v1/models")
    return _those(text, (one["name"] for one in found.get("models", ()) if not one["here"]))


def settings(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem[str]]:
    """Complete the key of a setting, up to its =."""
    return _those(text, (f"{key}=" for key in config.flatten(config.Config())))


def _those(text: str, names: Iterable[str]) -> list[CompletionItem[str]]:
    fitting = {name for name in names if name.startswith(text) and name.isprintable()}
    return [CompletionItem(name) for name in sorted(fitting)]


def _ask(ctx: click.Context, path: str) -> dict[str, Any]:
    """Return what the agent answers to GET `path`; {} where it does not, for any reason."""
    try:
        file, assignments = ctx.params.get("file"), ctx.params.get("assignments") or ()
        found, _ = config.load(Path(file) if file else None, os.environ, assignments)
        answer = json.loads(_get(found.socket, path))
    except (CoveyError, OSError, ValueError):
        return {}
    return answer if isinstance(answer, dict) and "error" not in answer else {}


def _get(place: Path, path: str) -> bytes:
    """Return the body of an answer by HTTP/1.0, which ends with its connection."""
    deadline = time.monotonic() + PATIENCE_S
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(place))
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: agent\r\n\r\n".encode())
        got = bytearray()
        while piece := connection.recv(1 << 16):
            got += piece
            left = deadline - time.monotonic()
            if left <= 0 or len(got) > _MOST_BYTES:
                raise TimeoutError
            connection.settimeout(left)
    return bytes(got).partition(b"\r\n\r\n")[2]
