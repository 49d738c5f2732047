"""Ollama's /api/chat and /api/generate, for OpenAI's chat completions and completions.

A core, wired by `app.py`. Streams are lines of JSON and are the default.

| Ollama's | here |
|---|---|
| no messages, no prompt | is the model there? It makes one token, and `done_reason` is `load` |
| `raw`, `suffix` | /v1/completions; all else is a chat, to which the template is applied |
| `images` | parts of the chat, for replicas that see |
| `template`, `context` | refused: they would change the answer, and cannot be had |
| `keep_alive`, `truncate`, `shift`, options of loading | accepted; the mesh says what is loaded |
| no ids of calls | call_0, call_1, …; a result belongs to the first open call of its name |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.dialects import ollama_options as options
from gateway.dialects import pictures
from gateway.dialects.ollama_answers import AnswerReader, LoadReader, chat_form, generate_form
from gateway.dialects.ollama_requests import Endpoint, decoder, ndjson
from gateway.dialects.port import Refused, Translated
from gateway.routing.replicas import Shown

_CHAT = "/v1/chat/completions"
_COMPLETION = "/v1/completions"

Json = dict[str, Any]


class _Function(msgspec.Struct, frozen=True):
    name: str
    arguments: Json | None = None


class _Call(msgspec.Struct, frozen=True):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Ask(msgspec.Struct, frozen=True, kw_only=True):
    model: str = ""
    stream: bool | None = None
    format: Any = None
    options: Json | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class _ChatAsk(_Ask, frozen=True, kw_only=True):
    messages: list[_Message] | None = None
    tools: list[Json] | None = None


class _GenerateAsk(_Ask, frozen=True, kw_only=True):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[Any] | None = None
    raw: bool | None = None
    images: list[Any] | None = None


_decode_chat = decoder(_ChatAsk)
_decode_generate = decoder(_GenerateAsk)


class Chat(Endpoint):
    """POST /api/chat."""

    def ask(self, body: bytes, now: float) -> Translated:
        """Return the request (port.Dialect)."""
        ask = _decode_chat(body)
        model = self._meant(ask.model)
        if not ask.messages:
            return ndjson(_load(model), _CHAT, LoadReader(ask.model, now, chat_form))
        fields: Json = {
            "model": model,
            "messages": _messages(ask.messages),
            **_shared(ask),
            **_told(ask),
        }
        if ask.tools:
            fields["tools"] = [{"type": "function"} | tool for tool in ask.tools]
        seen = next(
            (Shown(f"messages[{at}].images[0]", "image")
             for at, message in enumerate(ask.messages) if message.images), None,
        )  # fmt: skip
        return ndjson(fields, _CHAT, AnswerReader(ask.model, now, chat_form), seen)


class Generate(Endpoint):
    """POST /api/generate."""

    def ask(self, body: bytes, now: float) -> Translated:
        """Return the request (port.Dialect)."""
        ask = _decode_generate(body)
        _check(ask)
        model = self._meant(ask.model)
        if not ask.prompt and not ask.images:
            return ndjson(_load(model), _CHAT, LoadReader(ask.model, now, generate_form))
        reader = AnswerReader(ask.model, now, generate_form)
        if ask.raw or ask.suffix:
            fields: Json = {"model": model, "prompt": ask.prompt, "max_tokens": -1, **_shared(ask)}
            if ask.suffix:
                fields["suffix"] = ask.suffix
            return ndjson(fields, _COMPLETION, reader)
        said = [("system", ask.system), ("user", _content("images", ask.prompt, ask.images))]
        messages = [{"role": role, "content": content} for role, content in said if content]
        fields = {"model": model, "messages": messages, **_shared(ask), **_told(ask)}
        return ndjson(fields, _CHAT, reader, Shown("images[0]", "image") if ask.images else None)


def _check(ask: _GenerateAsk) -> None:
    if ask.template:
        raise Refused(
            400, "`template` is not supported: the model's own chat template is applied; write the"
            " whole prompt and set `raw` for another one"
        )  # fmt: skip
    if ask.context:
        raise Refused(
            400, "`context` is not supported: nothing here gives one; use /api/chat for a"
            " conversation"
        )  # fmt: skip
    if not (ask.raw or ask.suffix):
        return
    for name, given in (("system", ask.system), ("images", ask.images)):
        if given:
            raise Refused(400, f"`{name}` needs a template, and `raw` and `suffix` mean none")
    if ask.logprobs:
        raise Refused(400, "`logprobs` are not supported together with `raw` or `suffix`")


def _load(model: str) -> Json:
    """Return the smallest request that shows that a model answers."""
    return {"model": model, "messages": [{"role": "user", "content": "."}], "max_tokens": 1}


def _shared(ask: _Ask) -> Json:
    stream = ask.stream is not False
    return {
        **options.sampling(ask.options or {}),
        **options.response_format(ask.format),
        "stream": stream,
        # Without it, a stream does not say what it took.
        **({"stream_options": {"include_usage": True}} if stream else {}),
    }


def _told(ask: _Ask) -> Json:
    """Return the fields of what chats tell next to their text."""
    return {
        **options.thinking(ask.think),
        **options.probabilities(ask.logprobs, ask.top_logprobs),
    }


def _messages(messages: Sequence[_Message]) -> list[Json]:
    calls = _CallIds()
    return [_message(at, message, calls) for at, message in enumerate(messages)]


def _content(where: str, text: str | None, images: Sequence[Any] | None) -> str | list[Json]:
    """Return a message's content, in parts where there are images; `where` they are."""
    if not images:
        return text or ""
    parts = [pictures.of_base64(f"{where}[{at}]", data) for at, data in enumerate(images)]
    return [{"type": "text", "text": text}, *parts] if text else parts


def _message(at: int, message: _Message, calls: _CallIds) -> Json:
    content = _content(f"messages[{at}].images", message.content, message.images)
    found: Json = {"role": message.role, "content": content}
    if message.thinking:
        found["reasoning_content"] = message.thinking
    if message.tool_calls:
        found["tool_calls"] = [calls.made(call) for call in message.tool_calls]
    if message.role == "tool":
        found["tool_call_id"] = calls.answered(message)
        if message.tool_name:
            found["name"] = message.tool_name
    return found


class _CallIds:
    """The ids of the calls of one conversation, which OpenAI's results refer to."""

    def __init__(self) -> None:
        self._open: dict[str, str] = {}  # id: function
        self._next = 0

    def made(self, call: _Call) -> Json:
        """Return a call as OpenAI has it."""
        name = call.function.name
        id_ = call.id or self._new()
        self._open[id_] = name
        arguments = msgspec.json.encode(call.function.arguments or {}).decode()
        function = {"name": name, "arguments": arguments}
        return {"id": id_, "type": "function", "function": function}

    def answered(self, message: _Message) -> str:
        """Return the id of the call whose result a message is."""
        named = [id_ for id_, name in self._open.items() if name == message.tool_name]
        id_ = message.tool_call_id or next(iter(named or self._open), None) or self._new()
        self._open.pop(id_, None)
        return id_

    def _new(self) -> str:
        self._next += 1
        return f"call_{self._next - 1}"
