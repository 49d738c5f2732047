"""From token pieces to text that may be sent: incremental UTF-8 and stop strings.

A core, used by `app.py` once per answer. It does not know tokens, JSON or HTTP.

    pieces ──Utf8Stream──▶ whole characters ──StopMatcher──▶ text that no stop string can take back
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Utf8Stream:
    """Decode bytes that may be cut anywhere, also inside a character.

    Bytes that can never become a character give U+FFFD at once, as `bytes.decode` with
    "replace" would; the beginning of a character waits for the rest. A beginning that is still
    waiting when the answer ends was cut off by a token limit and is dropped.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, piece: bytes) -> str:
        """Take the next bytes and return the characters that are now whole."""
        return self._decoder.decode(piece)


class StopMatcher:
    """Hold text back while it may be the beginning of a stop string, and end it at the first one.

    The first stop string is the one that is complete first; of several that are complete at the
    same character, the longest. So the result does not depend on how the text came in pieces.
    `stops` must not hold an empty string (ValueError).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("an empty stop string matches everywhere")
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take the next text and return what may be sent; after a match, that is nothing more."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        # (end, start, stop) sorts by the earliest end, then by the earliest start.
        found = [(at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start]
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back: the answer has ended without completing a stop string."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
