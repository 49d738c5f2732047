"""Pictures as Ollama's and Anthropic's clients send them, as parts of OpenAI's chats.

A core, used by the dialects of both. The router keeps requests with pictures to replicas that see.
"""

from __future__ import annotations

from typing import Any

from gateway.dialects.port import Refused

# How base64 of the formats that Ollama takes begins: it has no other word for what it is.
_BEGINNINGS = {"iVBOR": "png", "/9j/": "jpeg", "R0lG": "gif", "UklGR": "webp"}

Json = dict[str, Any]


def of_base64(where: str, data: Any) -> Json:
    """Return the part for base64 of a known format; raises Refused."""
    for beginning, kind in _BEGINNINGS.items():
        if isinstance(data, str) and data.startswith(beginning):
            return _part(f"data:image/{kind};base64,{data}")
    raise Refused(400, f"`{where}` is no PNG, JPEG, GIF or WebP in base64", param=where)


def of_source(where: str, source: Any) -> Json:
    """Return the part for a source of Anthropic's, base64 or a URL; raises Refused."""
    match source:
        case {"type": "base64", "media_type": str(media), "data": str(data)}:
            return _part(f"data:{media};base64,{data}")
        case {"type": "url", "url": str(url)}:
            return _part(url)
    raise Refused(
        400, f"The image at `{where}` needs a `source` of type base64 or url: files are not kept"
        " here", param=where,
    )  # fmt: skip


def _part(url: str) -> Json:
    return {"type": "image_url", "image_url": {"url": url}}
