"""The endpoints of the earlier system that Covey succeeds: /generate, /peers, /peers/metrics.

A core, wired by `app.py`. Of /generate its users knew `prompt`, `max_tokens`, `temperature` and
`stream`; a prompt went to llama.cpp as it is, and there was one model. So here:

    a request       →  /v1/completions, with all other fields of it; without `model`, the only one
    the answer      →  {"text", "model", "finish_reason", "usage"}
    a stream        →  data: {"text": …, "done": false}, …, and last
                       data: {"text": "", "done": true, "model", "finish_reason", "usage"}
    an error        →  {"error": message}, in a stream as its last event

Where a replica is (its URL, what it said when it failed) stays with `gateway status`: these are
seen from other machines.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.dialects.names import Known, only
from gateway.dialects.port import Refused, Translated

# Where the request sets none: a base model goes on until its context is full.
MAX_TOKENS = 512

_EVENTS = "text/event-stream"
# What Router.view may know of a replica's load and speed; times in seconds.
_MEASURED = ("in_flight", "requests", "cooling_s", "first_byte_s", "token_s", "rtt_s")

Json = dict[str, Any]


class _Ask(msgspec.Struct, frozen=True):
    prompt: str
    model: str | None = None
    stream: bool | None = None


class _Choice(msgspec.Struct, frozen=True):
    text: str = ""
    finish_reason: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    choices: list[_Choice]
    model: str = ""
    usage: Json | None = None


_decode = msgspec.json.Decoder(_Ask).decode
_decode_object = msgspec.json.Decoder(Json).decode


class Generate:
    """POST /generate; `known` names the models that there are."""

    def __init__(self, known: Known) -> None:
        self._known = known

    def ask(self, body: bytes, now: float) -> Translated:
        """Return the request (port.Dialect)."""
        try:
            ask, fields = _decode(body), _decode_object(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, f"the request is not valid: {error}") from error
        if not ask.prompt:
            raise Refused(400, "`prompt` is empty")
        streamed = ask.stream is True
        fields = {"max_tokens": MAX_TOKENS} | {
            name: value for name, value in fields.items() if value is not None
        }
        fields["model"] = ask.model or only(self._known())
        fields["n"] = 1
        if streamed:
            fields["stream_options"] = {"include_usage": True}
        return Translated(fields, "/v1/completions", streamed, _EVENTS, _Reader())

    def error(self, status: int, message: str, kind: str, param: str | None = None) -> bytes:
        """Return an error (port.Dialect)."""
        return msgspec.json.encode({"error": message})


class _Reader:
    """One answer (port.Reader)."""

    def __init__(self) -> None:
        self._last: Json = {"model": "", "finish_reason": None, "usage": None}

    def whole(self, answer: Json) -> bytes:
        text = self._noted(answer).choices[0].text
        return msgspec.json.encode({"text": text} | self._last)

    def event(self, chunk: Json) -> bytes:
        text = "".join(choice.text for choice in self._noted(chunk).choices)
        return _event({"text": text, "done": False}) if text else b""

    def end(self) -> bytes:
        return _event({"text": "", "done": True} | self._last)

    def broken(self, message: str, code: str) -> bytes:
        return _event({"error": message})

    def _noted(self, answer: Json) -> _Answer:
        told = msgspec.convert(answer, _Answer)
        self._last["model"] = told.model or self._last["model"]
        self._last["usage"] = told.usage or self._last["usage"]
        for choice in told.choices:
            self._last["finish_reason"] = choice.finish_reason or self._last["finish_reason"]
        return told


def _event(value: Json) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(value)


def peers(view: Iterable[Json]) -> bytes:
    """Return the answer of GET /peers: the replicas of `Router.view`, and whether they answer."""
    found = [
        {
            "id": entry["name"],
            "source": entry["source"],
            "models": entry["models"],
            "healthy": entry["usable"],
        }
        for entry in view
    ]
    return msgspec.json.encode({"count": len(found), "peers": found})


def peers_metrics(view: Iterable[Json]) -> bytes:
    """Return the answer of GET /peers/metrics: what was measured of each replica, seconds."""
    found = [
        {"id": entry["name"], "healthy": entry["usable"]}
        | {name: entry[name] for name in _MEASURED if name in entry}
        for entry in view
    ]
    return msgspec.json.encode({"peers": found})
