"""What a dialect is: an API that clients speak, in terms of OpenAI's, which replicas speak.

A core: a protocol, kept by the modules beside it, which are cores too, and used by
`translation.py`. Time is an argument, and what is unique in an answer comes from the replica's
own identifiers.

    client ── body ──▶ Dialect.ask ── Translated.body ──▶ replica
    client ◀─ bytes ── Reader ◀─ objects of OpenAI's ── replica
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from gateway.routing.replicas import Shown


class Refused(Exception):
    """The request makes no sense in its dialect, or asks for what is not served (files).

    `status` is HTTP's, `message` a sentence or two for a person, without a full stop at the end;
    `param` names the field that is at fault, `code` is OpenAI's word for it, for those that know.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code


class Reader(Protocol):
    """Turns a replica's answer into the dialect's; one for each time that a replica is asked.

    Raises anything for an answer that is not as OpenAI defines it, and Refused where the replica
    cannot do what was asked.
    """

    def whole(self, answer: dict[str, Any]) -> bytes:
        """Return the body for an answer in one piece, such as OpenAI's chat.completion."""

    def event(self, chunk: dict[str, Any]) -> bytes:
        """Return what to send for a chat.completion.chunk, nothing if it can wait."""

    def end(self) -> bytes:
        """Return what ends a stream: the replica has said [DONE]."""

    def broken(self, message: str, code: str) -> bytes:
        """Return what ends a stream that broke after its beginning; `code` as in `Dialect.error`.

        Nothing follows it; it may come at any time before `end`.
        """


class Translated(NamedTuple):
    """A request as replicas take it.

    `body` is OpenAI's (chat completions, completions, embeddings) with `model`, `path` where it
    goes at the replica. `content_type` is that of a stream in the dialect: text/event-stream or
    application/x-ndjson. With `shown`, in the dialect's words, it is for replicas that see.
    """

    body: dict[str, Any]
    path: str
    streamed: bool
    content_type: str
    reader: Reader
    shown: Shown | None = None


class Dialect(Protocol):
    """One endpoint of another API."""

    def ask(self, body: bytes, now: float) -> Translated:
        """Return the request; `now` in unix seconds. Raises Refused.

        It is called again when another replica is tried, and may be called in any thread.
        """

    def error(self, status: int, message: str, kind: str, param: str | None = None) -> bytes:
        """Return an error as JSON in the dialect's form.

        `kind` is OpenAI's `code` (model_not_found) where it has one for it, else its `type`
        (invalid_request_error, server_error); `param` is the client's field at fault, if known.
        """
