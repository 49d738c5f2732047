"""Asks the agent over its unix socket, with the standard library alone: aiohttp would take 30 MB.

A shell; for what runs beside an agent for long, or often (`watching.py`, `image.containers`).
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

_ANSWER_S = 5.0


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, within_s: float) -> None:
        super().__init__("agent", timeout=within_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Refused(Exception):
    """The agent answered, and refused: its words."""


def ask(path: Path) -> dict[str, Any] | None:
    """Return the status of the agent at a socket; None when it does not answer."""
    try:
        return get(path, "/v1/status")
    except Refused:
        return None


def get(path: Path, what: str, within_s: float = _ANSWER_S) -> dict[str, Any] | None:
    """Return what the agent at a socket says; None when it does not answer. Raises Refused."""
    return _exchange(path, "GET", what, None, within_s)


def post(
    path: Path, what: str, wish: dict[str, Any], within_s: float = _ANSWER_S
) -> dict[str, Any] | None:
    """Tell the agent at a socket to do something; None when it does not answer. Raises Refused."""
    return _exchange(path, "POST", what, json.dumps(wish).encode(), within_s)


def _exchange(
    path: Path, method: str, what: str, body: bytes | None, within_s: float
) -> dict[str, Any] | None:
    connection = _Connection(path, within_s)
    try:
        connection.request(method, what, body)
        answer = connection.getresponse()
        status, found = answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    if not isinstance(found, dict):
        return None
    if status >= 400:
        raise Refused(_words(found))
    return found


def _words(answer: dict[str, Any]) -> str:
    fault = answer.get("error")
    found = fault if isinstance(fault, dict) else {}
    return f"{found.get('message', 'the agent refused')} {found.get('hint', '')}".strip()
