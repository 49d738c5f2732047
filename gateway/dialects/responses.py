"""OpenAI's Responses API: POST /v1/responses, asked.

A core; the answers' side is `responses_answer.py`. Of what the API has beyond chat completions:

| asked | here |
|---|---|
| `instructions`, items of role developer | messages of the system |
| calls and their outputs as items | the assistant's `tool_calls`, messages of the tool |
| reasoning items of earlier turns | left out |
| `reasoning.effort`, `text.verbosity` | passed on as chat completions' fields |
| `store`, `include` of encrypted reasoning, cache keys, `service_tier` | accepted, of no effect |
| `previous_response_id`, `conversation`, `prompt`, `background` | refused: nothing is kept here |
| images, files and audio in a user's message | as parts of chats, for replicas that see |
| tools that run at OpenAI, uploaded files, `top_logprobs`, `truncation: auto` | refused |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec

from gateway.dialects.asked import chat, decode
from gateway.dialects.port import Refused, Translated
from gateway.dialects.responses_answer import Echo, ResponseReader
from gateway.dialects.responses_content import Content, contents, shown, text_of
from gateway.dialects.translation import EVENT_STREAM
from gateway.routing.replicas import Shown


class _Item(msgspec.Struct, frozen=True):
    """A message, a call, an output; items that are none of these are refused by their type."""

    type: str = "message"
    role: str | None = None
    content: str | list[Content] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Content] | None = None


class _Tool(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _ToolChoice(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None


class _Format(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class _Text(msgspec.Struct, frozen=True):
    format: _Format | None = None
    verbosity: str | None = None


class _Reasoning(msgspec.Struct, frozen=True):
    effort: str | None = None


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str, msgspec.Meta(min_length=1)]
    input: str | list[_Item]
    instructions: str | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    # Refused where they ask for anything.
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None


_decode = msgspec.json.Decoder(_Asked).decode
# The parts of a request that answers repeat, as the client wrote them.
_decode_echo = msgspec.json.Decoder(Echo).decode


class Responses:
    """POST /v1/responses."""

    def ask(self, body: bytes, now: float) -> Translated:
        """Return it as a chat completion; see `port.Dialect`."""
        asked = decode(body, _decode)
        _check(asked)
        text = asked.text or _Text()
        given = chat(
            model=asked.model,
            messages=_messages(asked),
            tools=[_tool(tool) for tool in asked.tools or ()] or None,
            tool_choice=_tool_choice(asked.tool_choice),
            parallel_tool_calls=asked.parallel_tool_calls if asked.tools else None,
            response_format=_format(text.format),
            max_tokens=asked.max_output_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            reasoning_effort=asked.reasoning.effort if asked.reasoning else None,
            verbosity=text.verbosity,
            user=asked.user,
            stream=asked.stream,
        )
        reader = ResponseReader(decode(body, _decode_echo), now)
        streamed = asked.stream is True
        seen = None if isinstance(asked.input, str) else _shown(asked.input)
        return Translated(given, "/v1/chat/completions", streamed, EVENT_STREAM, reader, seen)

    def error(self, status: int, message: str, kind: str, param: str | None = None) -> bytes:
        """Return OpenAI's error object."""
        type_ = "invalid_request_error" if status < 500 else "server_error"
        code = None if kind == type_ else kind
        error = {"message": message, "type": type_, "param": param, "code": code}
        return msgspec.json.encode({"error": error})


def _check(asked: _Asked) -> None:
    """Raise Refused for what is not served."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(asked, name) is not None:
            raise Refused(
                400, f"`{name}` is not served: nothing is kept here, so send all of it as `input`"
            )
    if asked.background:
        raise Refused(400, "`background` is not served: nothing is kept here, so use `stream`")
    for name in asked.include or ():
        if name != "reasoning.encrypted_content":  # there is none, whoever asks
            raise Refused(400, f"`include` of {name!r} is not served; leave it out")
    if asked.top_logprobs:
        raise Refused(400, "`top_logprobs` is not served; /v1/chat/completions has them")
    if asked.truncation not in (None, "disabled"):
        raise Refused(400, "`truncation` is not served: shorten the `input` yourself")


def _messages(asked: _Asked) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        messages.append({"role": "user", "content": asked.input})
        return messages
    for index, item in enumerate(asked.input):
        where = f"input[{index}]"
        if item.type == "function_call":
            _add_call(messages, _call(where, item))
        else:
            messages += _message(where, item)
    if not messages:
        raise Refused(400, "`input` is empty")
    return messages


def _message(where: str, item: _Item) -> Iterator[dict[str, Any]]:
    match item.type:
        case "message":
            if item.role not in ("user", "assistant", "system", "developer") or (
                item.content is None
            ):
                raise Refused(400, f"`{where}` needs a `role` that is known, and a `content`")
            role = "system" if item.role == "developer" else item.role
            place = f"{where}.content"
            told = contents(place, item.content) if role == "user" else text_of(place, item.content)
            yield {"role": role, "content": told}
        case "function_call_output":
            if not item.call_id or item.output is None:
                raise Refused(400, f"`{where}` needs `call_id` and `output`")
            output = text_of(f"{where}.output", item.output)
            yield {"role": "tool", "tool_call_id": item.call_id, "content": output}
        case "reasoning":
            return
        case "item_reference":
            raise Refused(
                400, f"`{where}` refers to an item, but none are kept here: send it whole"
            )
        case _:
            raise Refused(400, f"`{where}` is of type {item.type!r}, which is not served")


def _add_call(messages: list[dict[str, Any]], call: dict[str, Any]) -> None:
    """Add a call, which comes as an item of its own, to the assistant's message before it."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)


def _call(where: str, item: _Item) -> dict[str, Any]:
    if not item.call_id or not item.name:
        raise Refused(400, f"`{where}` needs `call_id` and `name`")
    function = {"name": item.name, "arguments": item.arguments or "{}"}
    return {"id": item.call_id, "type": "function", "function": function}


def _shown(items: Sequence[_Item]) -> Shown | None:
    """Return the first part that is no text; those of users' messages alone get so far."""
    for index, item in enumerate(items):
        if item.type != "message" or isinstance(item.content, str):
            continue
        if seen := shown(f"input[{index}].content", item.content or ()):
            return seen
    return None


def _tool(tool: _Tool) -> dict[str, Any]:
    if tool.type != "function":
        raise Refused(
            400, f"A tool of type {tool.type!r} runs at OpenAI; only functions are served here"
        )
    if not tool.name:
        raise Refused(400, "A tool of type function needs a `name`")
    given = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
    function = {name: value for name, value in given.items() if value is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | _ToolChoice | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, _ToolChoice):
        return choice
    if choice.type != "function" or not choice.name:
        raise Refused(
            400, "`tool_choice` must be auto, none, required, or of type function with a `name`"
        )
    return {"type": "function", "function": {"name": choice.name}}


def _format(wanted: _Format | None) -> dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    if wanted.schema is None:
        raise Refused(400, "`text.format` of type json_schema needs a `schema`")
    given = {
        "name": wanted.name or "answer",
        "schema": wanted.schema,
        "description": wanted.description,
        "strict": wanted.strict,
    }
    named = {name: value for name, value in given.items() if value is not None}
    return {"type": "json_schema", "json_schema": named}
