"""The messages of a chat, as clients send them and as chat templates want them.

A core, used by `schema.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent.engine.serve.openai import ApiError
from agent.unreadable import UNREADABLE


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class _Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct, frozen=True):
    function: _Function
    id: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One message of a request."""

    role: Annotated[str, Meta(min_length=1)]
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None
    function_call: Any = None


def for_template(index: int, raw: Mapping[str, Any], message: Message) -> dict[str, Any]:
    """Return the message for the template: the client's fields, its content as one text.

    Arguments of earlier calls, which clients send as text, become objects: templates write them as
    JSON themselves. Raises ApiError for what no template could use.
    """
    where = f"messages[{index}]"
    if message.function_call or message.role == "function":
        raise ApiError(
            f"`{where}` is of the functions that came before tools, which this server has not",
            hint="Use `tools`.",
            param=where,
            code="unsupported_parameter",
        )
    # OpenAI renamed `system`; the templates of open models know the old name only.
    role = "system" if message.role == "developer" else message.role
    found = {**raw, "role": role, "content": _content(where, message)}
    found.pop("tool_calls", None)
    if message.tool_calls:
        if role != "assistant":
            raise ApiError(f"`{where}` has tool_calls, which only an assistant has", param=where)
        found["tool_calls"] = [
            _call(f"{where}.tool_calls[{number}]", call)
            for number, call in enumerate(message.tool_calls)
        ]
    return found


def _content(where: str, message: Message) -> str:
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise ApiError(f"`{where}` has no content", param=f"{where}.content")
        return ""
    if isinstance(content, str):
        return content
    for number, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise ApiError(
                f"`{where}.content[{number}]` is of type {part.type!r}, but this model reads"
                " text only",
                param=f"{where}.content[{number}]",
                code="unsupported_content",
            )
    return "\n".join(part.text or "" for part in content)  # as llama-server and vLLM do


def _call(where: str, call: _Call) -> dict[str, Any]:
    arguments: Any = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments) if arguments.strip() else {}
        except UNREADABLE:
            arguments = None
    elif arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise ApiError(
            f"`{where}.function.arguments` is not the text of a JSON object", param=where
        )
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id or "", "type": "function", "function": function}
