"""What is no text: parts of a chat that are pictures, sound or files, and which models take them.

A core. `proxy.py` and the dialects ask what a request shows, `watch.py` what an outside server's
list of models tells; the router then keeps requests that show something to those that see.

| a server's /v1/models | tells |
|---|---|
| llama-server | `models[].capabilities` has `multimodal` |
| Mistral's and its like | `data[].capabilities` has `vision`, or says it is true |
| OpenRouter's and its like | `data[].architecture.input_modalities` has more than text |
| Ollama, vLLM and most others | nothing: the operator says it (`vision` of the configuration) |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.routing.replicas import Shown

# OpenAI's, and those that vLLM added.
PARTS = frozenset(
    {"image_url", "input_audio", "file", "video_url", "audio_url", "input_image", "input_file"}
)
_NEEDLES = tuple(f'"{name}"'.encode() for name in sorted(PARTS))
# What a list of models says of one that takes more than text.
_SEEING = frozenset({"multimodal", "vision", "image", "audio", "video"})


class _Message(msgspec.Struct, frozen=True):
    content: Any = None


class _Listed(msgspec.Struct, frozen=True):
    """A model as OpenAI lists it (`id`), or as llama-server does beside (`name`)."""

    id: Any = None
    name: Any = None
    capabilities: Any = None
    architecture: Any = None


class _List(msgspec.Struct, frozen=True):
    data: list[_Listed] = []
    models: list[_Listed] = []


_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_list = msgspec.json.Decoder(_List).decode


def shown(messages: msgspec.Raw) -> Shown | None:
    """Return the first part of a chat's `messages` that is no text, None if there is none.

    What is no chat at all shows nothing: the replica says what is wrong with it.
    """
    text = bytes(messages)
    # Most chats have no part with a type, and so cost no more than this.
    if b'"type"' not in text or not any(needle in text for needle in _NEEDLES):
        return None
    try:
        told = _decode_messages(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    for at, message in enumerate(told):
        parts = message.content if isinstance(message.content, list) else ()
        for number, part in enumerate(parts):
            type_ = part.get("type") if isinstance(part, dict) else None
            if isinstance(type_, str) and type_ in PARTS:
                return Shown(f"messages[{at}].content[{number}]", type_)
    return None


def seeing(body: bytes) -> frozenset[str]:
    """Return the models that say that they take more than text in a server's /v1/models."""
    if b'"capabilities"' not in body and b'"architecture"' not in body:
        return frozenset()
    try:
        told = _decode_list(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return frozenset()
    return frozenset(
        name
        for listed in (*told.data, *told.models)
        if _sees(listed)
        for name in (listed.id, listed.name)
        if isinstance(name, str)
    )


def _sees(listed: _Listed) -> bool:
    design = listed.architecture if isinstance(listed.architecture, dict) else {}
    told = {*_words(listed.capabilities), *_words(design.get("input_modalities"))}
    return not _SEEING.isdisjoint(told)


def _words(told: Any) -> Iterable[str]:
    """Return the words of a list, or those of an object whose values are true."""
    if isinstance(told, dict):
        return [name for name, value in told.items() if value is True]
    return [word for word in told if isinstance(word, str)] if isinstance(told, list) else []
