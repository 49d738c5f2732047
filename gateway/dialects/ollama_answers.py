"""Answers as Ollama's clients want them: one object, or a line of JSON for each piece.

A core, used by `ollama.py` and `ollama_embed.py`. Readers raise msgspec.ValidationError (or
IndexError for no choice) on what is no answer of OpenAI's.

    a chunk with text  →  {…, "message": {"content": text}, "done": false}
    calls of tools     →  one line with all of them, when the last is whole
    [DONE]             →  {…, "done": true, "done_reason": …, counts and durations}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.dialects.ollama_requests import line, timestamp

Json = dict[str, Any]


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, frozen=True):
    function: _Function = _Function()
    id: str | None = None
    index: int | None = None


class _Said(msgspec.Struct, frozen=True):
    content: str | None = None
    # llama-server's and vLLM's name, and Ollama's and OpenRouter's.
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Logprobs(msgspec.Struct, frozen=True):
    content: list[Json] | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Said = _Said()
    delta: _Said = _Said()
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Timings(msgspec.Struct, frozen=True):
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0


class _Answer(msgspec.Struct, frozen=True):
    """A chat.completion, a chat.completion.chunk, or a text_completion."""

    choices: list[_Choice]
    usage: _Usage | None = None
    timings: _Timings | None = None


@dataclass
class _Piece:
    """What a line says: text, what the model thinks, calls of tools, logprobs."""

    text: str = ""
    thinking: str = ""
    calls: Sequence[Json] = ()
    logprobs: Sequence[Json] = ()


Form = Callable[[_Piece], Json]


def chat_form(piece: _Piece) -> Json:
    """Return what a line of /api/chat says, next to what every line has."""
    message: Json = {"role": "assistant", "content": piece.text}
    if piece.thinking:
        message["thinking"] = piece.thinking
    if piece.calls:
        message["tool_calls"] = list(piece.calls)
    return {"message": message} | _logprobs(piece)


def generate_form(piece: _Piece) -> Json:
    """Return what a line of /api/generate says, next to what every line has."""
    thinking = {"thinking": piece.thinking} if piece.thinking else {}
    return {"response": piece.text} | thinking | _logprobs(piece)


def _logprobs(piece: _Piece) -> Json:
    return {"logprobs": list(piece.logprobs)} if piece.logprobs else {}


class WholeReader:
    """What all readers have in common, and all but `whole` of those without streams.

    `model` is what the client calls it, `now` in unix seconds.
    """

    def __init__(self, model: str, now: float) -> None:
        self._head = {"model": model, "created_at": timestamp(now)}

    def event(self, chunk: Json) -> bytes:
        """Return nothing: there is no stream."""
        return b""

    def end(self) -> bytes:
        """Return nothing: there is no stream."""
        return b""

    def broken(self, message: str, code: str) -> bytes:
        """Return the line that ends a broken stream."""
        return line({"error": message})


class LoadReader(WholeReader):
    """Says that the model is there, whatever it answered: what Ollama does for no prompt."""

    def __init__(self, model: str, now: float, form: Form) -> None:
        super().__init__(model, now)
        self._form = form

    def whole(self, answer: Json) -> bytes:
        """Return the object."""
        said = self._form(_Piece())
        return line(self._head | said | {"done": True, "done_reason": "load"})


class AnswerReader(WholeReader):
    """An answer of the model in a form, whole or as it comes."""

    def __init__(self, model: str, now: float, form: Form) -> None:
        super().__init__(model, now)
        self._form = form
        self._calls = _Calls()
        self._reason: str | None = None
        self._usage: _Usage | None = None
        self._timings: _Timings | None = None

    def whole(self, answer: Json) -> bytes:
        """Return the object."""
        told = self._noted(answer)
        choice = told.choices[0]
        self._reason = choice.finish_reason
        self._calls.take(choice.message.tool_calls or ())
        piece = _piece(choice, choice.message)
        piece.calls = self._calls.whole()
        return self._last(piece)

    def event(self, chunk: Json) -> bytes:
        """Return the lines for a chunk."""
        told = self._noted(chunk)
        if not told.choices:
            return b""
        choice = told.choices[0]
        self._calls.take(choice.delta.tool_calls or ())
        self._reason = choice.finish_reason or self._reason
        piece = _piece(choice, choice.delta)
        if choice.finish_reason:
            piece.calls = self._calls.whole()
        if not (piece.text or piece.thinking or piece.calls or piece.logprobs):
            return b""
        return line(self._head | self._form(piece) | {"done": False})

    def end(self) -> bytes:
        """Return the last line."""
        return self._last(_Piece(calls=self._calls.whole()))

    def _noted(self, answer: Json) -> _Answer:
        told = msgspec.convert(answer, _Answer)
        self._usage = told.usage or self._usage
        self._timings = told.timings or self._timings
        return told

    def _last(self, piece: _Piece) -> bytes:
        # Ollama knows no reason of its own for calls of tools.
        reason = "length" if self._reason == "length" else "stop"
        ended = {"done": True, "done_reason": reason}
        return line(self._head | self._form(piece) | ended | self._cost())

    def _cost(self) -> Json:
        """Return counts, and durations in nanoseconds; what the replica does not say is left out.

        No model is loaded for a request, so that takes no time.
        """
        cost: Json = {}
        if self._timings:
            prompt_ns = round(self._timings.prompt_ms * 1e6)
            eval_ns = round(self._timings.predicted_ms * 1e6)
            cost |= {"total_duration": prompt_ns + eval_ns, "load_duration": 0,
                     "prompt_eval_duration": prompt_ns, "eval_duration": eval_ns}  # fmt: skip
        if self._usage:
            cost |= {"prompt_eval_count": self._usage.prompt_tokens,
                     "eval_count": self._usage.completion_tokens}  # fmt: skip
        return cost


def _piece(choice: _Choice, said: _Said) -> _Piece:
    return _Piece(
        text=said.content or choice.text or "",
        thinking=said.reasoning_content or said.reasoning or "",
        logprobs=(choice.logprobs and choice.logprobs.content) or (),
    )


@dataclass
class _Called:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class _Calls:
    """Gathers calls of tools, which come in pieces: Ollama's clients want them whole."""

    def __init__(self) -> None:
        self._calls: dict[int, _Called] = {}

    def take(self, calls: Sequence[_Call]) -> None:
        """Take calls, or pieces of them."""
        for number, call in enumerate(calls):
            called = self._calls.setdefault(number if call.index is None else call.index, _Called())
            called.id = called.id or call.id or ""
            called.name = called.name or call.function.name or ""
            called.arguments.append(call.function.arguments or "")

    def whole(self) -> list[Json]:
        """Return what was gathered, once."""
        calls, self._calls = self._calls, {}
        return [
            {
                **({"id": call.id} if call.id else {}),
                "function": {
                    "index": index,
                    "name": call.name,
                    "arguments": _object("".join(call.arguments)),
                },
            }
            for index, call in sorted(calls.items())
        ]


def _object(text: str) -> Json:
    """Return arguments as the object that clients need; a text that is none is in it as it is."""
    try:
        found = msgspec.json.decode(text) if text.strip() else {}
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": text}
