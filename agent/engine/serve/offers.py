"""The tools that a client offers, and what it wants of them. A core, for `schema.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agent.engine.serve.openai import ApiError

# OpenAI's limit.
MAX_TOOLS = 128
_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class _Function(msgspec.Struct, frozen=True):
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct, frozen=True):
    """A function that a client offers."""

    type: Literal["function"]
    function: _Function


class _Chosen(msgspec.Struct, frozen=True):
    name: _Name


class NamedChoice(msgspec.Struct, frozen=True):
    """A client's wish that one function be called."""

    type: Literal["function"]
    function: _Chosen


Choice = Literal["auto", "none", "required"]


@dataclass(frozen=True)
class Offer:
    """The `tools` that may be called; the model is `shown` all of them as the client wrote them.

    `must`: one of them has to be called; `several`: more than one may be.
    """

    tools: tuple[Tool, ...] = ()
    shown: tuple[dict[str, Any], ...] = ()
    must: bool = False
    several: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The names of those that may be called."""
        return tuple(tool.function.name for tool in self.tools)


def offer(
    tools: Sequence[Tool], raw: Sequence[dict[str, Any]], choice: Choice | NamedChoice, *,
    several: bool,
) -> Offer:  # fmt: skip
    """Return what may be called, nothing where nothing may; raises ApiError."""
    if choice == "none" or (choice == "auto" and not tools):
        return Offer()
    if isinstance(choice, NamedChoice):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        several = False
    found = Offer(tuple(tools), tuple(raw), choice != "auto", several)
    if not tools:
        raise ApiError("`tool_choice` asks for a tool that is not in `tools`", param="tool_choice")
    if len(set(found.names)) < len(tools):
        raise ApiError("two of the `tools` have the same name", param="tools")
    return found
