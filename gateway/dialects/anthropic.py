"""Anthropic's Messages API (version 2023-06-01): POST /v1/messages and …/count_tokens, asked.

A core; the answers' side is `anthropic_answer.py`. Of what the API has beyond OpenAI's chats:

| asked | here |
|---|---|
| `system`, texts in blocks | one text each, the blocks a line apart |
| `tool_result` with `is_error` | a tool's message that begins with "Error: " |
| `thinking` | told to the chat template (`enable_thinking`); a budget is not kept |
| thinking blocks of earlier turns | left out, as Anthropic does itself |
| `output_config` | `format` as `response_format`; `effort` is passed on as `reasoning_effort` |
| `metadata`, `cache_control`, `service_tier` | accepted, of no effect |
| an assistant's message at the end | refused: answers begin anew here |
| images in a user's message | parts of the chat, for replicas that see; not counted |
| documents, images elsewhere, `mcp_servers`, tools that Anthropic defines | refused |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec

from gateway.dialects import pictures
from gateway.dialects.anthropic_answer import CountReader, MessageReader, error_body
from gateway.dialects.asked import chat, decode
from gateway.dialects.port import Refused, Translated
from gateway.dialects.translation import EVENT_STREAM
from gateway.routing.replicas import Shown


class _Block(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[_Block] | None = None
    is_error: bool | None = None
    source: Any = None


class _Message(msgspec.Struct, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


class _Tool(msgspec.Struct, frozen=True):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class _ToolChoice(msgspec.Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct, frozen=True):
    type: str


class _Format(msgspec.Struct, frozen=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _OutputConfig(msgspec.Struct, frozen=True):
    format: _Format | None = None
    effort: str | None = None


class _Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What /v1/messages/count_tokens takes."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    system: str | list[_Block] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None


class _Asked(_Counted, frozen=True, kw_only=True):
    """What /v1/messages takes."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    output_config: _OutputConfig = _OutputConfig()
    mcp_servers: list[Any] | None = None


_decode_asked = msgspec.json.Decoder(_Asked).decode
_decode_counted = msgspec.json.Decoder(_Counted).decode


class Messages:
    """POST /v1/messages."""

    def ask(self, body: bytes, now: float) -> Translated:
        """Return it as a chat completion; see `port.Dialect`."""
        asked = decode(body, _decode_asked)
        if asked.mcp_servers:
            raise Refused(400, "`mcp_servers` are not served: call them yourself, as `tools`")
        choice = asked.tool_choice
        alone = choice.disable_parallel_tool_use if choice is not None else None
        given = chat(
            **_shared(asked),
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            stop=asked.stop_sequences or None,
            tool_choice=_tool_choice(choice),
            parallel_tool_calls=None if alone is None else not alone,
            response_format=_response_format(asked.output_config.format),
            reasoning_effort=asked.output_config.effort,
            stream=asked.stream,
        )
        reader = MessageReader(asked.model, frozenset(asked.stop_sequences or ()), now)
        streamed = asked.stream is True
        seen = _shown(asked)
        return Translated(given, "/v1/chat/completions", streamed, EVENT_STREAM, reader, seen)

    def error(self, status: int, message: str, kind: str, param: str | None = None) -> bytes:
        """Return Anthropic's error object."""
        return error_body(status, message)


class CountTokens:
    """POST /v1/messages/count_tokens: the replica's template and tokens, nothing is generated."""

    def ask(self, body: bytes, now: float) -> Translated:
        """Return it as a request to tokenize messages; see `port.Dialect`."""
        asked = decode(body, _decode_counted)
        if seen := _shown(asked):
            raise Refused(400, f"`{seen.where}` is an image, and only text is counted here")
        prompt = _shared(asked)
        return Translated(prompt, "/tokenize", False, EVENT_STREAM, CountReader())

    def error(self, status: int, message: str, kind: str, param: str | None = None) -> bytes:
        """Return Anthropic's error object."""
        if status == 404 and kind != "model_not_found":
            message = "The server of this model cannot count tokens"
        return error_body(status, message)


def _shared(asked: _Counted) -> dict[str, Any]:
    """Return what decides about the prompt."""
    if asked.messages[-1].role == "assistant":
        raise Refused(
            400, "The last message is the assistant's, but answers begin anew here;"
            " end with a user's",
        )  # fmt: skip
    prompt: dict[str, Any] = {"model": asked.model, "messages": list(_messages(asked))}
    if asked.tools:
        prompt["tools"] = [_tool(tool) for tool in asked.tools]
    if asked.thinking is not None:
        prompt["chat_template_kwargs"] = {"enable_thinking": asked.thinking.type != "disabled"}
    return prompt


def _messages(asked: _Counted) -> Iterator[dict[str, Any]]:
    if asked.system:
        yield {"role": "system", "content": _text("system", asked.system)}
    for index, message in enumerate(asked.messages):
        where = f"messages[{index}].content"
        if isinstance(message.content, str):
            yield {"role": message.role, "content": message.content}
        elif message.role == "assistant":
            yield _assistant(where, message.content)
        else:
            yield from _user(where, message.role, message.content)


def _user(where: str, role: str, blocks: Sequence[_Block]) -> Iterator[dict[str, Any]]:
    """Yield the results of tools, each a message of its own, and the texts between them."""
    texts: list[_Block] = []
    for block in blocks:
        if block.type != "tool_result":
            texts.append(block)
            continue
        if texts:
            yield {"role": role, "content": _content(where, role, texts)}
            texts = []
        if not block.tool_use_id:
            raise Refused(400, f"A tool_result in `{where}` has no `tool_use_id`")
        result = _text(f"{where}: tool_result.content", block.content or "")
        yield {
            "role": "tool",
            "tool_call_id": block.tool_use_id,
            "content": f"Error: {result}" if block.is_error else result,
        }
    if texts or not blocks:
        yield {"role": role, "content": _content(where, role, texts)}


def _content(where: str, role: str, blocks: Sequence[_Block]) -> str | list[dict[str, Any]]:
    """Return a message's content, in parts where a user shows something."""
    if role != "user" or not any(block.type == "image" for block in blocks):
        return _text(where, blocks)
    return [
        pictures.of_source(where, block.source)
        if block.type == "image"
        else {"type": "text", "text": _text(where, [block])}
        for block in blocks
    ]


def _shown(asked: _Counted) -> Shown | None:
    """Return the first image in a user's message."""
    for at, message in enumerate(asked.messages):
        if message.role != "user" or isinstance(message.content, str):
            continue
        for number, block in enumerate(message.content):
            if block.type == "image":
                return Shown(f"messages[{at}].content[{number}]", "image")
    return None


def _assistant(where: str, blocks: Sequence[_Block]) -> dict[str, Any]:
    calls = [_call(where, block) for block in blocks if block.type == "tool_use"]
    said = [
        block
        for block in blocks
        if block.type not in ("tool_use", "thinking", "redacted_thinking")
    ]  # fmt: skip
    message = {"role": "assistant", "content": _text(where, said)}
    return {**message, "tool_calls": calls} if calls else message


def _call(where: str, block: _Block) -> dict[str, Any]:
    if not block.id or not block.name:
        raise Refused(400, f"A tool_use in `{where}` needs `id` and `name`")
    arguments = msgspec.json.encode(block.input or {}).decode()
    return {
        "id": block.id,
        "type": "function",
        "function": {"name": block.name, "arguments": arguments},
    }


def _text(where: str, content: str | Sequence[_Block]) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text" or block.text is None:
            raise Refused(
                400, f"`{where}` holds a block of type {block.type!r}, but models here read text"
                " only: send it as text, or leave it out",
            )  # fmt: skip
    return "\n".join(block.text or "" for block in content)


def _tool(tool: _Tool) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise Refused(
            400, f"The tool {tool.name!r} is of type {tool.type!r}, which Anthropic defines;"
            " only tools with an `input_schema` are served here",
        )  # fmt: skip
    if tool.input_schema is None:
        raise Refused(400, f"The tool {tool.name!r} has no `input_schema`")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _tool_choice(choice: _ToolChoice | None) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    if choice.type != "tool":
        return {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if not choice.name:
        raise Refused(400, "`tool_choice` of type tool needs a `name`")
    return {"type": "function", "function": {"name": choice.name}}


def _response_format(wanted: _Format | None) -> dict[str, Any] | None:
    if wanted is None:
        return None
    named = {"name": "answer", "schema": wanted.schema, "strict": True}
    return {"type": "json_schema", "json_schema": named}
