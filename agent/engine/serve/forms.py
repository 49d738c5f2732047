"""How the two endpoints say their answers, whole or as a stream of chunks, as OpenAI's do.

A core, used by `app.py`, which chooses the form, and `deliver.py`, which fills it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from agent.engine.generation import Likely, Token
from agent.engine.serve.openai import FinishReason, Json
from agent.engine.serve.tools import Call, call_object


@dataclass(frozen=True)
class Said:
    """A token of an answer, and the character of the answer at which it begins."""

    token: Token
    offset: int


@dataclass
class Choice:
    """One whole answer: its text in parts, its calls of tools, and its tokens where asked for.

    `stop` is the stop string that ended it, None if anything else did.
    """

    parts: list[str]
    calls: list[Call] = field(default_factory=list)
    tokens: list[Said] = field(default_factory=list)
    reason: FinishReason = "stop"
    stop: str | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.parts)


class Form(Protocol):
    """How one endpoint says its answers; `index` numbers the choices of a request from 0."""

    def begin(self, index: int) -> Json | None:
        """Return the chunk that opens a choice, if there is one."""

    def delta(self, index: int, text: str, tokens: Sequence[Said] = ()) -> Json:
        """Return the chunk that carries `text`."""

    def called(self, index: int, number: int, call: Call) -> tuple[Json, ...]:
        """Return the chunks that carry a call, which is the choice's call `number` (from 0)."""

    def end(self, index: int, reason: FinishReason, extra: Json, stop: str | None = None) -> Json:
        """Return the chunk that says why a choice ended; `extra` is added to it.

        `stop` is the stop string that did it, if one did.
        """

    def counted(self, counts: Json) -> Json:
        """Return the chunk that carries the usage and no choice."""

    def whole(self, choices: Sequence[Choice], extra: Json) -> Json:
        """Return the answers in one piece; `extra` (usage, timings) is added to them."""


class ChatForm:
    """/v1/chat/completions. `id_` is unique, `created` unix seconds; see `Form`."""

    def __init__(
        self, id_: str, created: int, model: str, *, include_usage: bool, logprobs: bool
    ) -> None:
        self._head = {"id": f"chatcmpl-{id_}", "created": created, "model": model}
        self._logprobs = logprobs
        # With include_usage every chunk has the field, null until the last one.
        self._no_usage: Json = {"usage": None} if include_usage else {}

    def _chunk(
        self, index: int, delta: Json, reason: FinishReason | None = None,
        tokens: Sequence[Said] = (), stop: str | None = None,
    ) -> Json:  # fmt: skip
        choice = {
            "index": index, "delta": delta, "finish_reason": reason, **_stopped(stop),
            "logprobs": _chat_logprobs(tokens) if self._logprobs and tokens else None,
        }  # fmt: skip
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [choice],
            **self._no_usage,
        }

    def begin(self, index: int) -> Json | None:
        """Return the chunk with the role, as OpenAI sends it first."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def delta(self, index: int, text: str, tokens: Sequence[Said] = ()) -> Json:
        """Return the chunk that carries `text`."""
        return self._chunk(index, {"content": text}, tokens=tokens)

    def called(self, index: int, number: int, call: Call) -> tuple[Json, ...]:
        """Return the chunks that carry a call: its name, then its arguments, as OpenAI does."""
        named = call_object(replace(call, arguments=""))
        deltas = ({"index": number, **named},
                  {"index": number, "function": {"arguments": call.arguments}})  # fmt: skip
        return tuple(self._chunk(index, {"tool_calls": [delta]}) for delta in deltas)

    def end(self, index: int, reason: FinishReason, extra: Json, stop: str | None = None) -> Json:
        """Return the chunk that says why a choice ended."""
        return self._chunk(index, {}, reason, stop=stop) | extra

    def counted(self, counts: Json) -> Json:
        """Return the chunk that carries the usage and no choice."""
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": counts,
        }

    def whole(self, choices: Sequence[Choice], extra: Json) -> Json:
        """Return the answers in one piece."""
        told = [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": _chat_logprobs(choice.tokens) if self._logprobs else None,
                "finish_reason": choice.reason,
                **_stopped(choice.stop),
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "object": "chat.completion", "choices": told, **extra}


class CompletionForm:
    """/v1/completions: the chunks and the whole answer are one kind of object; see `Form`."""

    def __init__(
        self, id_: str, created: int, model: str, *, include_usage: bool, logprobs: bool
    ) -> None:
        self._head = {
            "id": f"cmpl-{id_}",
            "object": "text_completion",
            "created": created,
            "model": model,
        }
        self._logprobs = logprobs
        self._no_usage: Json = {"usage": None} if include_usage else {}

    def _choice(
        self, index: int, text: str, reason: FinishReason | None, tokens: Sequence[Said] = (),
        stop: str | None = None,
    ) -> Json:  # fmt: skip
        logprobs = _completion_logprobs(tokens) if self._logprobs else None
        return {
            "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason,
            **_stopped(stop),
        }  # fmt: skip

    def _chunk(self, choice: Json) -> Json:
        return {**self._head, "choices": [choice], **self._no_usage}

    def begin(self, index: int) -> Json | None:
        """Return nothing: the first chunk is the first text."""
        return None

    def delta(self, index: int, text: str, tokens: Sequence[Said] = ()) -> Json:
        """Return the chunk that carries `text`."""
        return self._chunk(self._choice(index, text, None, tokens))

    def called(self, index: int, number: int, call: Call) -> tuple[Json, ...]:
        """Return nothing: completions have no tools."""
        return ()

    def end(self, index: int, reason: FinishReason, extra: Json, stop: str | None = None) -> Json:
        """Return the chunk that says why a choice ended."""
        return self._chunk(self._choice(index, "", reason, stop=stop)) | extra

    def counted(self, counts: Json) -> Json:
        """Return the chunk that carries the usage and no choice."""
        return {**self._head, "choices": [], "usage": counts}

    def whole(self, choices: Sequence[Choice], extra: Json) -> Json:
        """Return the answers in one piece."""
        told = [
            self._choice(index, choice.text, choice.reason, choice.tokens, choice.stop)
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": told, **extra}


def _stopped(stop: str | None) -> Json:
    """Return the field that tells which stop string it was: OpenAI has none, vLLM calls it so."""
    return {} if stop is None else {"stop_reason": stop}


def _message(choice: Choice) -> Json:
    message: Json = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [call_object(call) for call in choice.calls]
    return message


def _chat_logprobs(tokens: Sequence[Said]) -> Json:
    return {
        "content": [
            {
                **_named(said.token.piece, said.token.logprob),
                "top_logprobs": [_named(other.piece, other.logprob) for other in said.token.likely],
            }
            for said in tokens
        ],
        "refusal": None,
    }


def _named(piece: bytes, logprob: float | None) -> Json:
    return {"token": _text(piece), "logprob": logprob, "bytes": list(piece)}


def _completion_logprobs(tokens: Sequence[Said]) -> Json:
    return {
        "tokens": [_text(said.token.piece) for said in tokens],
        "token_logprobs": [said.token.logprob for said in tokens],
        "top_logprobs": [_by_text(said.token.likely) for said in tokens],
        "text_offset": [said.offset for said in tokens],
    }


def _by_text(likely: Sequence[Likely]) -> dict[str, float]:
    found: dict[str, float] = {}
    for token in likely:
        # Parts of characters have the same text: the likeliest, which comes first, stands for all.
        found.setdefault(_text(token.piece), token.logprob)
    return found


def _text(piece: bytes) -> str:
    return piece.decode(errors="replace")
