"""What a request says of how it wants to be routed: from its headers and the body's fields.

A core, used by `proxy.py`.

    x-covey-strategy     one of the strategies, for this request
    x-covey-session      a conversation's name; else the body's `prompt_cache_key`, else `user`
    x-covey-deadline-ms  milliseconds from now within which the first byte has to come
    x-covey-priority     an integer; of one client's waiting requests the higher goes first
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.errors import ApiError
from gateway.routing import STRATEGIES, Need, Shown
from gateway.routing.prefixes import blocks

STRATEGY, SESSION = "x-covey-strategy", "x-covey-session"
DEADLINE_MS, PRIORITY = "x-covey-deadline-ms", "x-covey-priority"
# A name is kept for each conversation.
MAX_SESSION = 256
MAX_PRIORITY = 1000
_INTEGER = re.compile(r"[+-]?\d{1,12}")


class Fields(msgspec.Struct, frozen=True):
    """The fields of a body that routing looks at; prompts are not decoded."""

    model: Any = None
    stream: Any = None
    tools: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    documents: msgspec.Raw = msgspec.Raw()
    max_tokens: Any = None
    max_completion_tokens: Any = None
    prompt_cache_key: Any = None
    user: Any = None


@dataclass(frozen=True)
class Wishes:
    """What a request needs, when its first byte is due in seconds from now, its priority."""

    need: Need
    deadline_s: float | None
    priority: int


def wishes(
    headers: Mapping[str, str], path: str, fields: Fields, shown: Shown | None = None
) -> Wishes:
    """Return what a request for a model says, which shows `shown`.

    Raises ApiError where a header makes no sense.
    """
    strategy = headers.get(STRATEGY, "")
    if strategy and strategy not in STRATEGIES:
        raise ApiError(
            f"{STRATEGY} names no strategy: {strategy[:60]!r}", status=400,
            hint=f"Use one of {', '.join(STRATEGIES)}.", param=STRATEGY,
        )  # fmt: skip
    deadline_ms = _integer(headers, DEADLINE_MS)
    priority = _integer(headers, PRIORITY) or 0
    parts = (fields.tools, fields.messages, fields.prompt, fields.input, fields.documents)
    prompt = [view for part in parts if (view := memoryview(part)).nbytes]
    most = [
        value
        for value in (fields.max_completion_tokens, fields.max_tokens)
        if isinstance(value, int) and value > 0
    ]
    need = Need(
        model=fields.model,
        streamed=fields.stream is True,
        kind=path.rstrip("/").rpartition("/")[2],
        prompt_bytes=sum(view.nbytes for view in prompt),
        max_tokens=most[0] if most else 0,
        prefix=blocks([fields.model.encode("utf-8", "surrogatepass"), *prompt]) if prompt else (),
        session=_session(headers, fields),
        strategy=strategy,
        shown=shown,
    )
    return Wishes(
        need,
        None if deadline_ms is None else deadline_ms / 1000,
        min(max(priority, -MAX_PRIORITY), MAX_PRIORITY),
    )


def client(headers: Mapping[str, str], address: str | None) -> str:
    """Return who asks, for fair shares: a key's hash, or else the address."""
    key = headers.get("Authorization") or headers.get("x-api-key")
    if key:
        return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return address or ""


def _session(headers: Mapping[str, str], fields: Fields) -> str:
    for said in (headers.get(SESSION), fields.prompt_cache_key, fields.user):
        if isinstance(said, str) and said:
            return said[:MAX_SESSION]
    return ""


def _integer(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not _INTEGER.fullmatch(text.strip()):
        raise ApiError(f"{name} is no integer: {text[:60]!r}", status=400, param=name)
    return int(text)
