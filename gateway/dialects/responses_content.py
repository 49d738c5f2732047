"""What messages of OpenAI's Responses API hold: texts, and what models that see are shown.

A core, used by `responses.py`.

| a part | in a chat |
|---|---|
| `input_text`, `output_text`, `text`, `refusal` | text; several are one, a line apart |
| `input_image` with `image_url` | `image_url` with `url` and `detail` |
| `input_file` with `file_data` | `file` |
| `input_audio` | as it is |
| an image or a file by `file_id`, a file by `file_url` | refused: nothing is kept or fetched here |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.dialects.port import Refused
from gateway.routing.replicas import Shown

_TEXTS = frozenset({"input_text", "output_text", "text", "refusal"})
_SHOWN = frozenset({"input_image", "input_file", "input_audio"})
_CODE = "unsupported_content"


class Content(msgspec.Struct, frozen=True):
    """One part of a message's content, of any type."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None
    file_data: str | None = None
    filename: str | None = None
    input_audio: dict[str, Any] | None = None


def text_of(where: str, content: str | Sequence[Content]) -> str:
    """Return content that has to be text; raises Refused."""
    if isinstance(content, str):
        return content
    return "\n".join(_text(f"{where}[{at}]", part) for at, part in enumerate(content))


def contents(where: str, content: str | Sequence[Content]) -> str | list[dict[str, Any]]:
    """Return content as a chat has it, in parts where it is not all text; raises Refused."""
    if isinstance(content, str) or not any(part.type in _SHOWN for part in content):
        return text_of(where, content)
    return [_part(f"{where}[{at}]", part) for at, part in enumerate(content)]


def shown(where: str, content: Sequence[Content]) -> Shown | None:
    """Return the first part that is no text."""
    for at, part in enumerate(content):
        if part.type in _SHOWN:
            return Shown(f"{where}[{at}]", part.type)
    return None


def _text(where: str, part: Content) -> str:
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in _TEXTS or text is None:
        raise Refused(
            400, f"`{where}` is of type {part.type!r}, but only text is read there: send it as"
            " text, or leave it out", param=where, code=_CODE,
        )  # fmt: skip
    return text


def _part(where: str, part: Content) -> dict[str, Any]:
    match part:
        case Content(type="input_image", image_url=str(url)):
            image = {"url": url} | ({"detail": part.detail} if part.detail else {})
            return {"type": "image_url", "image_url": image}
        case Content(type="input_file", file_data=str(data)):
            named = {"filename": part.filename} if part.filename else {}
            return {"type": "file", "file": {"file_data": data} | named}
        case Content(type="input_audio", input_audio=dict(audio)):
            return {"type": "input_audio", "input_audio": audio}
        case Content(type=type_) if type_ in _SHOWN:
            raise Refused(
                400, f"`{where}` does not hold its {type_.removeprefix('input_')}, and nothing is"
                " kept or fetched here: send it as data", param=where, code=_CODE,
            )  # fmt: skip
        case _:
            return {"type": "text", "text": _text(where, part)}
