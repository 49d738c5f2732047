"""llama-server's /tokenize and /detokenize, which replicas have as they are.

A core. All that is done here is to find the model of a request that names none, as llama-server's
clients do: it is the only one that there is. Answers are passed on, errors are OpenAI's.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects.names import Known, only
from gateway.dialects.port import Refused, Translated

_decode = msgspec.json.Decoder(dict[str, Any]).decode
# What OpenAI calls a type of errors; all others are codes.
_TYPES = ("invalid_request_error", "server_error")


class Tokens:
    """POST `path`, either of the two; `known` names the models that there are."""

    def __init__(self, path: str, known: Known) -> None:
        self._path = path
        self._known = known

    def ask(self, body: bytes, now: float) -> Translated:
        """Return the request (port.Dialect)."""
        try:
            fields = _decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, f"The request's body is not a JSON object: {error}") from error
        fields.pop("stream", None)  # means nothing here; a chat that is counted may have it
        if fields.get("model") is None:
            fields["model"] = only(self._known())
        return Translated(fields, self._path, False, "application/json", _AsItIs())

    def error(self, status: int, message: str, kind: str, param: str | None = None) -> bytes:
        """Return an error (port.Dialect)."""
        type_ = "invalid_request_error" if status < 500 else "server_error"
        return _error(message, type_, kind, param)


class _AsItIs:
    """The reader of such an answer, which is never a stream (port.Reader)."""

    def whole(self, answer: dict[str, Any]) -> bytes:
        return msgspec.json.encode(answer)

    def event(self, chunk: dict[str, Any]) -> bytes:
        return b""

    def end(self) -> bytes:
        return b""

    def broken(self, message: str, code: str) -> bytes:
        return _error(message, "server_error", code)


def _error(message: str, type_: str, kind: str, param: str | None = None) -> bytes:
    code = None if kind in _TYPES else kind or None
    error = {"message": message, "type": type_, "param": param, "code": code}
    return msgspec.json.encode({"error": error})
