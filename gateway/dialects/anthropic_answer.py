"""Anthropic's Messages API, answered: messages, their streams, counts and errors.

A core, used by `anthropic.py`. OpenAI tells what a stream cost at its end, so `message_start` says
0 tokens and `message_delta` has all of the usage.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects import sse
from gateway.dialects.parts import Begun, Ended, Grown, Part, Parts, Step, Usage
from gateway.dialects.port import Refused

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(status: int, message: str) -> bytes:
    """Return an error as JSON."""
    return msgspec.json.encode(_error(_error_type(status), message))


def _error_type(status: int) -> str:
    return _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def _error(type_: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": type_, "message": message}}


class CountReader:
    """Turns a list of tokens into their number; it is never streamed."""

    def whole(self, answer: dict[str, Any]) -> bytes:
        """Return the count; raises Refused for a server that did not look at the messages."""
        # llama-server's own /tokenize takes a text alone, and finds no token in no text.
        if not answer["tokens"]:
            raise Refused(501, "The server of this model cannot count the tokens of messages")
        return msgspec.json.encode({"input_tokens": len(answer["tokens"])})

    def event(self, chunk: dict[str, Any]) -> bytes:
        """Return nothing."""
        return b""

    def end(self) -> bytes:
        """Return nothing."""
        return b""

    def broken(self, message: str, code: str) -> bytes:
        """Return nothing."""
        return b""


class MessageReader:
    """Turns a chat completion into a message; see `port.Reader`.

    `model` is what the client called it, `stops` are its stop sequences, `now` in unix seconds.
    """

    def __init__(self, model: str, stops: frozenset[str], now: float) -> None:
        self._model = model
        self._stops = stops
        self._now = now
        self._parts = Parts()
        self._begun = False
        self._pinged = False

    def whole(self, answer: dict[str, Any]) -> bytes:
        """Return the message."""
        self._parts.take(answer)
        return msgspec.json.encode(
            {
                **self._head(),
                "content": [self._block(part) for part in self._parts.parts],
                **self._stopped(),
                "usage": _usage(self._parts.usage),
            }
        )

    def event(self, chunk: dict[str, Any]) -> bytes:
        """Return the events that a chunk means."""
        steps = list(self._parts.push(chunk))
        return self._start() + b"".join(map(self._step, steps))

    def end(self) -> bytes:
        """Return the events that end a message."""
        delta = {
            "type": "message_delta",
            "delta": self._stopped(),
            "usage": _usage(self._parts.usage),
        }
        return b"".join(
            [
                self._start(),
                *map(self._step, self._parts.end()),
                sse.event("message_delta", delta),
                sse.event("message_stop", {"type": "message_stop"}),
            ]
        )

    def broken(self, message: str, code: str) -> bytes:
        """Return the error event."""
        return sse.event("error", _error("api_error", message))

    def _head(self) -> dict[str, Any]:
        # OpenAI's are chatcmpl-…; without any, the time is as good.
        own = self._parts.id.removeprefix("chatcmpl-") or f"{int(self._now * 1e6):x}"
        return {
            "id": f"msg_{own}",
            "type": "message",
            "role": "assistant",
            "model": self._parts.model or self._model,
        }

    def _start(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        message = {
            **self._head(),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(Usage()),
        }
        return sse.event("message_start", {"type": "message_start", "message": message})

    def _step(self, step: Step) -> bytes:
        index = step.part.index
        match step:
            case Begun(part):
                block = _block(part, "", {})
                begun = {"type": "content_block_start", "index": index, "content_block": block}
                return sse.event("content_block_start", begun) + self._ping()
            case Grown(part, text):
                delta = (
                    {"type": "text_delta", "text": text}
                    if part.call_id is None
                    else {"type": "input_json_delta", "partial_json": text}
                )
                grown = {"type": "content_block_delta", "index": index, "delta": delta}
                return sse.event("content_block_delta", grown)
            case Ended():
                return sse.event(
                    "content_block_stop", {"type": "content_block_stop", "index": index}
                )

    def _block(self, part: Part) -> dict[str, Any]:
        if part.call_id is None:
            return _block(part, part.text, {})
        try:
            given = msgspec.json.decode(part.text or b"{}")
        except (ValueError, RecursionError):
            if self._parts.finish_reason != "length":
                raise
            given = {}  # cut off, as the message's stop_reason says
        if not isinstance(given, dict):
            raise ValueError("a call's arguments are no JSON object")
        return _block(part, "", given)

    def _ping(self) -> bytes:
        if self._pinged:
            return b""
        self._pinged = True
        return sse.event("ping", {"type": "ping"})

    def _stopped(self) -> dict[str, Any]:
        """Return why it stopped; a stop sequence where the replica tells (heads, vLLM)."""
        parts = self._parts
        reason = _STOP_REASONS.get(parts.finish_reason or "stop", "end_turn")
        stop = parts.stop_reason
        if reason == "end_turn" and isinstance(stop, str) and stop in self._stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": stop}
        if reason == "end_turn" and parts.called:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": None}


def _block(part: Part, text: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return a part as a block, with the `text` of a text or what is `given` to a tool."""
    if part.call_id is None:
        return {"type": "text", "text": text}
    return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": given}


def _usage(usage: Usage) -> dict[str, int]:
    """Return it as Anthropic counts: what came out of caches is no input."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion_tokens,
    }
