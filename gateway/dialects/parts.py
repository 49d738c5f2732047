"""OpenAI's chat answers, as far as dialects need them: a row of texts and calls of tools.

A core, used by the dialects whose answers are such rows (`anthropic.py`, `responses.py`). A stream
is told in steps, in which parts never overlap:

    Begun(part) → Grown(part, text)* → Ended(part) → Begun(the next part) → …
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """What an answer cost, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    @property
    def cached(self) -> int:
        """How many of the prompt's tokens were in the replica's caches."""
        details = self.prompt_tokens_details
        known = details.cached_tokens if details is not None else None
        return min(known or 0, self.prompt_tokens)


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, frozen=True):
    function: _Function = _Function()
    id: str | None = None
    index: int = 0


class _Said(msgspec.Struct, frozen=True):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    message: _Said = _Said()
    delta: _Said = _Said()
    finish_reason: str | None = None
    # Heads' and vLLM's: the stop string that ended the answer, or the id of the token that did.
    stop_reason: str | int | None = None


class _Answer(msgspec.Struct, frozen=True):
    """A chat.completion or a chat.completion.chunk."""

    choices: list[_Choice]
    id: str | None = None
    model: str | None = None
    usage: Usage | None = None


@dataclass
class Part:
    """A text, or a call of a tool, whose arguments (JSON) are its text."""

    index: int
    call_id: str | None = None
    name: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What has been said of it so far."""
        return "".join(self.said)


@dataclass(frozen=True)
class Begun:
    """A new part, still empty."""

    part: Part


@dataclass(frozen=True)
class Grown:
    """More of the part that began last; never empty."""

    part: Part
    text: str


@dataclass(frozen=True)
class Ended:
    """The part is whole."""

    part: Part


Step = Begun | Grown | Ended


class Overlap(ValueError):
    """A replica that goes on with a call after it has begun another part."""


class Parts:
    """Gathers one answer, whole (`take`) or as it comes (`push`, `end`): its first choice.

    All raise msgspec.ValidationError for what is no answer of OpenAI's, `push` also Overlap.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.id = ""
        self.model = ""
        self.usage = Usage()
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self._open: Part | None = None
        self._calls: dict[int, Part] = {}

    def take(self, answer: dict[str, Any]) -> None:
        """Take a whole answer; `parts` and the rest then tell it."""
        for choice in self._about(answer):
            said = choice.message
            if said.content:
                self._begin(Part(len(self.parts))).said.append(said.content)
            for number, call in enumerate(said.tool_calls or ()):
                part = self._begin(self._called(number, call))
                part.said.append(call.function.arguments or "")

    def push(self, chunk: dict[str, Any]) -> Iterator[Step]:
        """Take the next chunk of a stream and yield what it adds."""
        for choice in self._about(chunk):
            said = choice.delta
            if said.content:
                yield from self._say(said.content)
            for call in said.tool_calls or ():
                yield from self._call(call)

    def end(self) -> Iterator[Step]:
        """Yield what is left to say when the stream has ended."""
        if self._open is not None:
            yield Ended(self._open)
            self._open = None

    @property
    def called(self) -> bool:
        """Whether a tool is called."""
        return any(part.call_id is not None for part in self.parts)

    def _about(self, answer: dict[str, Any]) -> Iterator[_Choice]:
        told = msgspec.convert(answer, _Answer)
        self.id = self.id or told.id or ""
        self.model = self.model or told.model or ""
        self.usage = told.usage or self.usage
        for choice in told.choices:
            if choice.index != 0:
                continue
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.stop_reason is not None:
                self.stop_reason = choice.stop_reason
            yield choice

    def _say(self, text: str) -> Iterator[Step]:
        part = self._open
        if part is None or part.call_id is not None:
            yield from self.end()
            part = self._begin(Part(len(self.parts)))
            yield Begun(part)
        part.said.append(text)
        yield Grown(part, text)

    def _call(self, call: _Call) -> Iterator[Step]:
        part = self._calls.get(call.index)
        if part is None:
            yield from self.end()
            part = self._calls[call.index] = self._begin(self._called(call.index, call))
            yield Begun(part)
        if arguments := call.function.arguments:
            if part is not self._open:
                raise Overlap(f"call {call.index} goes on after another part has begun")
            part.said.append(arguments)
            yield Grown(part, arguments)

    def _begin(self, part: Part) -> Part:
        self.parts.append(part)
        self._open = part
        return part

    def _called(self, number: int, call: _Call) -> Part:
        name = call.function.name
        if not name:
            raise msgspec.ValidationError(f"call {number} names no function")
        return Part(len(self.parts), call.id or f"call_{self.id}_{number}", name)
