"""From a request's body in a dialect to a chat completion. A core, used by the dialects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from gateway.dialects.port import Refused

_Asked = TypeVar("_Asked")


def decode(body: bytes, decoder: Callable[[bytes], _Asked]) -> _Asked:
    """Return what `decoder`, a msgspec decoder's `decode`, makes of a body; raises Refused."""
    try:
        return decoder(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"The request is not valid: {error}") from error


def chat(*, stream: bool | None, **given: Any) -> dict[str, Any]:
    """Return a chat completion's body with the fields of `given` that are not None."""
    fields = {name: value for name, value in given.items() if value is not None}
    if not fields.get("tools") and fields.get("tool_choice") in ("auto", "none"):
        del fields["tool_choice"]  # OpenAI itself refuses a choice where there is none
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return fields
