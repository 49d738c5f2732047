"""W3C trace context: whose trace a request belongs to, and the span that the gateway adds to it.

A core, used by `observe.py`. A client's `traceparent` that is not as the standard has it is
treated as if there were none, and so is its `tracestate` then.

| traceparent  | exported                        | not exported              |
|---|---|---|
| valid, sampled | the same trace, our span's id | passed on as it came      |
| valid, not     | passed on as it came          | passed on as it came      |
| none, invalid  | a new trace, sampled          | a new trace, not sampled  |

An id of ours that nobody exports would only cut a client's trace in two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER = re.compile(
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
MOST_MEMBERS = 32
SAMPLED = 0x01
# Level 2 of the standard: the trace's id is random. Other flags mean nothing yet, and are reset.
RANDOM = 0x02


class Context(NamedTuple):
    """A request's place in its trace; ids in lower-case hexadecimal.

    `span` is what is passed on as the parent of all that follows; `parent` is whose span ours
    belongs to, empty for none; `exported` says whether our span is to be exported.
    """

    trace: str
    span: str
    parent: str
    flags: int
    state: str
    exported: bool

    @property
    def traceparent(self) -> str:
        """The header to pass on."""
        return f"00-{self.trace}-{self.span}-{self.flags:02x}"


def context(
    parents: Sequence[str], states: Sequence[str], *, export: bool, entropy: Callable[[int], bytes]
) -> Context:
    """Return the context of a request with these `traceparent` and `tracestate` headers.

    `export`: spans are exported at all. `entropy` returns so many random bytes.
    """
    given = _parsed(parents[0].strip()) if len(parents) == 1 else None
    if given is None:
        flags = RANDOM | (SAMPLED if export else 0)
        return Context(entropy(16).hex(), entropy(8).hex(), "", flags, "", export)
    trace, parent, flags = given
    exported = export and bool(flags & SAMPLED)
    span = entropy(8).hex() if exported else parent
    return Context(trace, span, parent, flags, _state(states), exported)


def _parsed(text: str) -> tuple[str, str, int] | None:
    """Return trace, parent and flags, None for what is no traceparent."""
    match = _PARENT.fullmatch(text)
    if match is None:
        return None
    version, trace, parent, flags, more = match.groups()
    if version == "ff" or (version == "00" and more):
        return None
    if not trace.strip("0") or not parent.strip("0"):
        return None
    return trace, parent, int(flags, 16) & (SAMPLED | RANDOM)


def _state(states: Sequence[str]) -> str:
    """Return the tracestate to pass on, empty for none and for what is no tracestate."""
    members = [member.strip(" \t") for text in states for member in text.split(",")]
    members = [member for member in members if member]
    if len(members) > MOST_MEMBERS or not all(map(_MEMBER.fullmatch, members)):
        return ""
    names = {member.partition("=")[0] for member in members}
    return ",".join(members) if len(names) == len(members) else ""
