"""One request in a dialect: what the gateway asks a replica instead, and the answer's way back.

A core, made by `proxy.py` for each attempt and used by `upstream.py`: it takes the bytes of the
replica's answer in any chunking and returns those for the client.

| the replica | the client gets |
|---|---|
| streams events | the dialect's, as they come; a comment stays one where the dialect has them |
| streams an error, ends without [DONE], streams what is no answer | the dialect's error event |
| answers in one piece | the dialect's body; an answer that makes no sense counts as a failed try |
| answers with an error | the same status, the same words in the dialect's form |
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from gateway.dialects import sse
from gateway.dialects.port import Dialect, Refused

_log = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
# What is asked there is not answered by running the model.
_NOT_RUN = frozenset({"/tokenize", "/detokenize"})
_DONE = b"[DONE]"


class Garbled(Exception):
    """The replica's answer is not what OpenAI defines, nothing of it has reached the client."""


class _Error(msgspec.Struct, frozen=True):
    message: str | None = None
    type: str | None = None
    code: Any = None

    @property
    def kind(self) -> str:
        """What `Dialect.error` calls so."""
        return self.code if isinstance(self.code, str) and self.code else self.type or ""


class _Failure(msgspec.Struct, frozen=True):
    # Ollama's own endpoints say it as a text, and so do some others.
    error: _Error | str


_decode_failure = msgspec.json.Decoder(_Failure).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class Translation:
    """A request's `body`, `path`, `model` and so on for a replica, and its answer's way back.

    `over`: the client has got the end of its stream. `ask` is the client's body, `now` unix
    seconds. Raises Refused.
    """

    def __init__(self, dialect: Dialect, ask: bytes, now: float) -> None:
        translated = dialect.ask(ask, now)
        model = translated.body.get("model")
        if not isinstance(model, str) or not model:
            raise Refused(400, "The request names no model; set `model`")
        self.model = model
        self.path = translated.path
        self.streamed = translated.streamed
        self.body = msgspec.json.encode(translated.body)
        self.content_type = translated.content_type
        self.shown = translated.shown
        self._dialect = dialect
        self._reader = translated.reader
        self._events = sse.Parser()
        self.over = False

    @property
    def answers(self) -> bool:
        """Whether the model has to be run for it."""
        return self.path not in _NOT_RUN

    def whole(self, body: bytes) -> bytes:
        """Return the body for a replica's answer in one piece; raises Garbled, or Refused."""
        try:
            return self._reader.whole(_decode_object(body))
        except Refused:
            raise
        except Exception as error:
            _log.exception("an answer cannot be translated path=%s", self.path)
            raise Garbled("does not answer as an OpenAI server does") from error

    def error(self, status: int, body: bytes) -> bytes:
        """Return the body for a replica's answer with an error status."""
        try:
            told = _decode_failure(body).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            told = f"The model's server answered with status {status}"
        message, kind = (told, "") if isinstance(told, str) else (told.message or "", told.kind)
        kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        return self._dialect.error(status, message or f"Status {status}", kind)

    def refused(self, refused: Refused) -> bytes:
        """Return the body for what a replica cannot do."""
        return self._dialect.error(refused.status, refused.message, "server_error")

    def push(self, piece: bytes) -> bytes:
        """Return what the client gets for the next bytes of a stream; after its end, nothing."""
        said: list[bytes] = []
        try:
            for item in self._events.push(piece):
                if not self.over:
                    said.append(self._said(item))
        except Exception:
            _log.exception("a stream cannot be translated path=%s", self.path)
            said.append(self.broken("The model's server does not stream as an OpenAI server does"))
        return b"".join(said)

    def close(self) -> bytes:
        """Return what the client gets when the stream has ended; nothing where all was said."""
        # Some servers forget the last empty line.
        said = self.push(b"\n\n")
        return said + self.broken("The model's server ended its answer before it was whole")

    def broken(self, message: str, code: str = "server_error") -> bytes:
        """Return what ends the stream with an error, nothing where it has ended."""
        if self.over:
            return b""
        self.over = True
        return self._reader.broken(message, code or "server_error")

    def _said(self, item: sse.Event | sse.Comment) -> bytes:
        if isinstance(item, sse.Comment):
            return sse.comment(item.text) if self.content_type == EVENT_STREAM else b""
        if item.data == _DONE:
            said = self._reader.end()
            self.over = True
            return said
        chunk = _decode_object(item.data)
        if "error" in chunk:
            error = msgspec.convert(chunk, _Failure).error
            if isinstance(error, str):
                return self.broken(error)
            return self.broken(error.message or "The model's server failed", error.kind)
        return self._reader.event(chunk)
