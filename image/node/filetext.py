"""A text file as people's editors leave it: byte order marks, Windows' line ends, UTF-16. A core.

Nothing is lost: `encode` gives back the same bytes. What was no valid UTF-8 stands in a line as
lone surrogates, which `damaged` finds. Used for covey.toml.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, replace

# Longest first: a file in UTF-16 never begins with UTF-8's mark.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8", "surrogateescape"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "surrogatepass"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "surrogatepass"),
)
# Only these end a line for an editor; str.splitlines knows ten more.
_LINE = re.compile(r"([^\r\n]*)(\r\n|\n|\r|\Z)")
_DAMAGED = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class FileText:
    """Lines (line 1 first, without their ends) with each one's end, and how they were bytes."""

    lines: tuple[str, ...]
    ends: tuple[str, ...]
    mark: bytes = b""
    encoding: str = "utf-8"
    errors: str = "surrogateescape"
    tail: bytes = b""  # half a character of UTF-16 that the file was cut in

    @classmethod
    def decode(cls, raw: bytes) -> FileText:
        """Return the text of a file's bytes, whatever they are."""
        mark, encoding, errors = next(
            (known for known in _MARKS if raw.startswith(known[0])),
            (b"", "utf-8", "surrogateescape"),
        )
        body, tail = raw[len(mark) :], b""
        if encoding != "utf-8" and len(body) % 2:
            body, tail = body[:-1], body[-1:]
        found = _LINE.findall(body.decode(encoding, errors))
        # The pattern also finds the nothing after the last line's end.
        if len(found) > 1 and found[-1] == ("", ""):
            del found[-1]
        lines, ends = zip(*found, strict=True)
        return cls(lines, ends, mark, encoding, errors, tail)

    def encode(self) -> bytes:
        """Return the file's bytes."""
        text = "".join(line + end for line, end in zip(self.lines, self.ends, strict=True))
        return self.mark + text.encode(self.encoding, self.errors) + self.tail

    def with_lines(self, lines: dict[int, str | None]) -> FileText:
        """Return the text with other lines: by number from 1, None for one that goes."""
        pairs = [
            (lines.get(number, line), end)
            for number, (line, end) in enumerate(zip(self.lines, self.ends, strict=True), start=1)
        ]
        kept = [(line, end) for line, end in pairs if line is not None]
        return replace(
            self, lines=tuple(line for line, _ in kept), ends=tuple(end for _, end in kept)
        )


def damaged(text: str) -> bool:
    """Say whether a piece of a line held bytes that are no text."""
    return _DAMAGED.search(text) is not None
