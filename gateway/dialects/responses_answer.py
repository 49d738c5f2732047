"""OpenAI's Responses API, answered: response objects, and streams of typed events.

A core, used by `responses.py`. The events of a stream, each with its `sequence_number`:

    response.created, response.in_progress
    for each item: response.output_item.added
        of a message:  response.content_part.added, …output_text.delta*, …output_text.done,
                       response.content_part.done
        of a call:     response.function_call_arguments.delta*, …function_call_arguments.done
        response.output_item.done
    response.completed, or response.incomplete, or response.failed at any time
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.dialects import sse
from gateway.dialects.parts import Begun, Ended, Grown, Part, Parts, Step, Usage

_Status = Literal["in_progress", "completed", "incomplete", "failed"]
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Echo(msgspec.Struct, frozen=True, kw_only=True):
    """What a response repeats of its request, as it was written."""

    model: str
    instructions: Any = None
    max_output_tokens: Any = None
    metadata: Any = None
    parallel_tool_calls: Any = None
    reasoning: Any = None
    temperature: Any = None
    text: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_p: Any = None
    user: Any = None


# What OpenAI says where the client did not; the replica's own temperature and top_p are not known.
_UNSAID = {
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
}


class ResponseReader:
    """Turns a chat completion into a response; see `port.Reader`. `now` is in unix seconds."""

    def __init__(self, echo: Echo, now: float) -> None:
        self._model = echo.model
        self._echo = {
            name: _UNSAID.get(name) if value is None else value
            for name, value in msgspec.structs.asdict(echo).items()
            if name != "model"
        }
        self._now = now
        self._parts = Parts()
        self._open: Part | None = None
        self._number = 0

    def whole(self, answer: dict[str, Any]) -> bytes:
        """Return the response object."""
        self._parts.take(answer)
        return msgspec.json.encode(self._response(self._end_status()))

    def event(self, chunk: dict[str, Any]) -> bytes:
        """Return the events that a chunk means."""
        steps = list(self._parts.push(chunk))
        return self._start() + b"".join(map(self._step, steps))

    def end(self) -> bytes:
        """Return the events that end a response."""
        ended = self._start() + b"".join(map(self._step, self._parts.end()))
        status = self._end_status()
        return ended + self._event(f"response.{status}", response=self._response(status))

    def broken(self, message: str, code: str) -> bytes:
        """Return the event of a response that failed; OpenAI knows few codes, so it has theirs."""
        error = {"code": "server_error", "message": message}
        return self._event("response.failed", response=self._response("failed", error))

    def _event(self, type_: str, **fields: Any) -> bytes:
        event = {"type": type_, "sequence_number": self._number, **fields}
        self._number += 1
        return sse.event(type_, event)

    def _start(self) -> bytes:
        if self._number:
            return b""
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _step(self, step: Step) -> bytes:
        part = step.part
        at = {"output_index": part.index, "item_id": self._item_id(part)}
        text = {**at, "content_index": 0}
        match step:
            case Begun():
                self._open = part
                item = self._item(part, "", "in_progress")
                if part.call_id is None:
                    item["content"] = []
                added = self._event(
                    "response.output_item.added", output_index=part.index, item=item
                )
                if part.call_id is not None:
                    return added
                return added + self._event("response.content_part.added", **text, part=_text(""))
            case Grown(_, more):
                if part.call_id is not None:
                    return self._event("response.function_call_arguments.delta", **at, delta=more)
                return self._event("response.output_text.delta", **text, delta=more, logprobs=[])
            case Ended():
                self._open = None
                return self._ended(part, at, text)

    def _ended(self, part: Part, at: dict[str, Any], text: dict[str, Any]) -> bytes:
        said = part.text
        if part.call_id is not None:
            done = self._event(
                "response.function_call_arguments.done", **at, name=part.name, arguments=said
            )
        else:
            done = self._event(
                "response.output_text.done", **text, text=said, logprobs=[]
            ) + self._event("response.content_part.done", **text, part=_text(said))
        item = self._item(part, said, self._item_status(part))
        return done + self._event(
            "response.output_item.done", output_index=part.index, item=item
        )  # fmt: skip

    def _end_status(self) -> Literal["completed", "incomplete"]:
        return "incomplete" if self._parts.finish_reason in _INCOMPLETE else "completed"

    def _item_status(self, part: Part) -> _Status:
        """Return whether a part is whole: the last one of an answer that was cut off is not."""
        if part is self._open:
            return "incomplete"
        return self._end_status() if part is self._parts.parts[-1] else "completed"

    def _response(self, status: _Status, error: dict[str, Any] | None = None) -> dict[str, Any]:
        parts = self._parts
        reason = _INCOMPLETE.get(parts.finish_reason or "") if status == "incomplete" else None
        output = (
            []
            if status == "in_progress"
            else [self._item(part, part.text, self._item_status(part)) for part in parts.parts]
        )
        return {
            "id": f"resp_{self._own}",
            "object": "response",
            "created_at": int(self._now),
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": reason and {"reason": reason},
            "model": parts.model or self._model,
            "output": output,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None if status in ("in_progress", "failed") else _usage(parts.usage),
            **self._echo,
        }

    def _item(self, part: Part, said: str, status: _Status) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._item_id(part), "status": status}
        if part.call_id is None:
            return {**item, "type": "message", "role": "assistant", "content": [_text(said)]}
        call = {"call_id": part.call_id, "name": part.name, "arguments": said}
        return {**item, "type": "function_call", **call}

    def _item_id(self, part: Part) -> str:
        return f"{'msg' if part.call_id is None else 'fc'}_{self._own}_{part.index}"

    @property
    def _own(self) -> str:
        # OpenAI's are chatcmpl-…; without any, the time is as good.
        return self._parts.id.removeprefix("chatcmpl-") or f"{int(self._now * 1e6):x}"


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
