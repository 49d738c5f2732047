"""What Ollama's endpoints have in common: bodies that are read, lines, errors, times.

A core, used by the other `ollama….py`. Fields that Ollama does not know are passed over,
as it does itself.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from gateway.dialects.names import Known, resolve
from gateway.dialects.port import Reader, Refused, Translated
from gateway.routing.replicas import Shown

CONTENT_TYPE = "application/x-ndjson"

_Ask = TypeVar("_Ask", bound=msgspec.Struct)


def decoder(kind: type[_Ask]) -> Callable[[bytes], _Ask]:
    """Return what reads a body of a `kind` that has a `model`; it raises Refused."""
    decode = msgspec.json.Decoder(kind).decode

    def read(body: bytes) -> _Ask:
        try:
            ask = decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, f"invalid request: {error}") from error
        if not getattr(ask, "model", ""):
            raise Refused(400, "model is required")
        return ask

    return read


def ndjson(
    fields: dict[str, Any], path: str, reader: Reader, shown: Shown | None = None
) -> Translated:
    """Return a request whose answer is a stream if `fields` ask for one."""
    return Translated(fields, path, fields.get("stream") is True, CONTENT_TYPE, reader, shown)


class Endpoint:
    """What all endpoints have in common; `known` names the models that there are."""

    def __init__(self, known: Known) -> None:
        self._known = known

    def error(self, status: int, message: str, kind: str, param: str | None = None) -> bytes:
        """Return an error (port.Dialect)."""
        return msgspec.json.encode({"error": message})

    def _meant(self, asked: str) -> str:
        return resolve(asked, self._known())


def line(value: dict[str, Any]) -> bytes:
    """Return an object as a line: JSON holds no raw line break."""
    return msgspec.json.encode(value) + b"\n"


def timestamp(unix_s: float) -> str:
    """Return a time as RFC 3339 has it, in UTC."""
    text = datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")
