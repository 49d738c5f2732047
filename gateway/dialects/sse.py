"""Server-sent events (WHATWG HTML §9.2): bytes cut anywhere in, whole events out; and back.

A core, used by `translation.py` for a replica's answer and by the dialects for their own events.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

# An event is a token or a call of a tool; the largest is that of a long text without a stream.
MAX_EVENT_BYTES = 16 * 2**20
_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event; `name` is empty where the stream names none, `data` its lines joined."""

    name: str
    data: bytes


class Comment(NamedTuple):
    """A line that means nothing, and shows that the other side is there."""

    text: bytes


class TooLong(ValueError):
    """An event of more than MAX_EVENT_BYTES: no replica means that."""


class Parser:
    """Parses one stream. An event that its end cuts off is not told, as the standard has it."""

    def __init__(self) -> None:
        # The beginning of a line whose end has not come, in the pieces it came in.
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._name = ""
        self._bytes = 0  # since the last empty line, at most a piece too few
        self._begins = True
        # The last byte was a CR: an LF that comes next belongs to it.
        self._after_cr = False

    def push(self, piece: bytes) -> list[Event | Comment]:
        """Take the next bytes and return what is whole with them; raises TooLong."""
        if self._after_cr and piece:
            self._after_cr = False
            piece = piece.removeprefix(b"\n")
        if not piece:
            return []
        self._bytes += len(piece)
        if self._bytes > MAX_EVENT_BYTES:
            raise TooLong(f"an event of more than {MAX_EVENT_BYTES} bytes")
        if b"\n" not in piece and b"\r" not in piece:
            self._line.append(piece)
            return []
        self._after_cr = piece.endswith(b"\r")
        lines = b"".join((*self._line, piece)).splitlines()
        self._line = [] if piece.endswith((b"\r", b"\n")) else [lines.pop()]
        return [item for line in lines if (item := self._take(line)) is not None]

    def _take(self, line: bytes) -> Event | Comment | None:
        if self._begins:
            self._begins = False
            line = line.removeprefix(_BOM)
        if not line:
            name, data = self._name, self._data
            self._name, self._data, self._bytes = "", [], 0
            return Event(name, b"\n".join(data)) if data else None
        field, _, value = line.partition(b":")
        if not field:
            return Comment(value.removeprefix(b" "))
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
        elif field == b"event":
            self._name = value.removeprefix(b" ").decode(errors="replace")
        return None


def event(name: str, value: dict[str, Any]) -> bytes:
    """Return an event with a name; JSON holds no raw line break, so its data is one line."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(value))


def comment(text: bytes) -> bytes:
    """Return a comment, apart from what comes next; `text` holds no line break."""
    return b": %s\n\n" % text
