"""The lines of covey.toml as keys and values, every mistake with its line. A core.

The file is TOML without tables: KEY = "text" or KEY = ["text", "text"]. Python's reader stops at
the first mistake and keeps no lines, so this one finds the places, and the library reads what
stands between the quotes. What editors and word processors do to quotes and spaces is forgiven.
Which keys there are is `fields.py`'s; no message here repeats a value, which may be a secret.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from image.node.filetext import damaged

# Spaces that are seen as spaces, and marks that are not seen at all.
_BLANK = " \t\x0b\x0c\u00a0\u2007\u202f\u200b\u200c\u200d\u2060\ufeff"
_DOUBLE = '"“”„‟«»＂'
_SINGLE = "'‘’‚‛"
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,40}\Z")
_COLON = re.compile(r"([A-Za-z0-9_-]{1,40})[ \t]*:")
# What may stand behind a closing quote: without that, Anna’s would end at the apostrophe.
_AFTER = rf"(?=[{_BLANK}]*(?:[,\]#\n]|\Z))"
_STRICT = {
    '"""': re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}', re.S),
    "'''": re.compile(r"'''.*?'{3,5}", re.S),
    '"': re.compile(r'"(?:[^"\\\n]|\\[^\n])*"'),
    "'": re.compile(r"'[^'\n]*'"),
}
# A straight quote that is closed by a straight one is TOML's own matter.
_LENIENT = {
    _DOUBLE[:1]: re.compile(rf"\"([^\n]*?)[{_DOUBLE[1:]}]{_AFTER}"),
    _SINGLE[:1]: re.compile(rf"'([^\n]*?)[{_SINGLE[1:]}]{_AFTER}"),
    _DOUBLE[1:]: re.compile(rf"[{_DOUBLE[1:]}]([^\n]*?)[{_DOUBLE}]{_AFTER}"),
    _SINGLE[1:]: re.compile(rf"[{_SINGLE[1:]}]([^\n]*?)[{_SINGLE}]{_AFTER}"),
}
_OPENING = _DOUBLE + _SINGLE
# What a list's next line begins with; anything else is a list whose end was forgotten.
_GOES_ON = re.compile(rf"[{_BLANK}]*[{_OPENING},\]#\n]")


@dataclass(frozen=True)
class Mistake:
    """What is wrong in which line (from 1), at which key ("" where there is none)."""

    line: int
    key: str
    reason: str
    advice: str

    def __str__(self) -> str:
        key = f", {self.key}" if self.key else ""
        return f"line {self.line}{key}: {self.reason}. {self.advice}"


@dataclass(frozen=True)
class Bare:
    """A value that has no quotes: a number, a date, true, or a forgotten quote."""

    text: str = field(repr=False)


Item = str | Bare


@dataclass(frozen=True)
class Statement:
    """A key and what is set, from line `first` to line `last`; `items` has one if it is no list.

    `item_lines` are the lines that each item begins in.
    """

    key: str
    items: tuple[Item, ...] = field(repr=False)
    is_list: bool
    first: int
    last: int
    item_lines: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What was found: statements, mistakes, and the column of each line's comment, from 0."""

    statements: tuple[Statement, ...]
    mistakes: tuple[Mistake, ...]
    comments: dict[int, int]


def scan(lines: Sequence[str]) -> Scan:
    """Return the statements and the mistakes of a file's lines; never raises."""
    scanner = _Scanner(lines)
    while scanner.at < len(scanner.text):
        scanner.statement()
    mistakes = sorted(scanner.mistakes, key=lambda mistake: mistake.line)
    return Scan(tuple(scanner.statements), tuple(mistakes), scanner.comments)


class _Wrong(Exception):
    """Ends a statement; the rest of its line is passed over."""

    def __init__(self, at: int, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.at = at
        self.reason = reason
        self.advice = advice


class _Scanner:
    """Reads the text from `at` on, one statement after the other."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.text = "\n".join(lines) + "\n"
        self.at = 0
        self.statements: list[Statement] = []
        self.mistakes: list[Mistake] = []
        self.comments: dict[int, int] = {}
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def statement(self) -> None:
        """Read one statement, or a line without one, and stop at the beginning of a line."""
        key, first = "", self._line(self.at)
        try:
            if not self._at_end_of_line():
                key = self._key()
                statement = self._value(key, first)
                if not self._at_end_of_line():
                    raise _Wrong(
                        self.at,
                        "something follows the value",
                        "Leave only the value there; put one that holds a \" between two '.",
                    )
                self.statements.append(statement)
        except _Wrong as wrong:
            self.mistakes.append(Mistake(self._line(wrong.at), key, wrong.reason, wrong.advice))
        self.at = self.text.index("\n", self.at) + 1

    def _key(self) -> str:
        end = self.text.index("\n", self.at)
        line = self.text[self.at : end]
        if line.startswith("["):
            raise _Wrong(
                self.at,
                "is a line in brackets, but this file has no sections",
                'Remove it; every setting is a line of its own: KEY = "value".',
            )
        before, equals, _ = line.partition("=")
        if not equals or "#" in before:
            colon = _COLON.match(line)
            key = colon[1] if colon else "KEY"
            raise _Wrong(
                self.at,
                "has a colon where an = is needed" if colon else "is no setting and no comment",
                f'Write {key} = "value" in one line, or # before what is a comment.',
            )
        key = before.strip(_BLANK).strip(_OPENING)
        if not _KEY.match(key):
            raise _Wrong(
                self.at,
                "what stands before the = is no name of a setting",
                'Write KEY = "value", the key without spaces and quotes.',
            )
        self.at += len(before) + 1
        return key

    def _value(self, key: str, first: int) -> Statement:
        if self._at_end_of_line():
            raise _Wrong(
                self.at,
                "has no value",
                f'Write {key} = "value", or remove the line.',
            )
        is_list = self.text[self.at] == "["
        items, lines = self._list() if is_list else ([self._item("#\n")], [first])
        return Statement(key, tuple(items), is_list, first, self._line(self.at), tuple(lines))

    def _list(self) -> tuple[list[Item], list[int]]:
        """Read a list; commas too many or too few between texts in quotes change nothing."""
        opened = self.at
        self.at += 1
        items: list[Item] = []
        lines: list[int] = []
        while not self.text.startswith("]", self.at):
            if self._at_end_of_line():
                following = self.text.find("\n", self.at) + 1
                if not _GOES_ON.match(self.text, following):
                    raise _Wrong(opened, "the list that begins here does not end", "Write ] there.")
                self.at = following
            elif self.text[self.at] == ",":
                self.at += 1
            elif self.text[self.at] != "]":
                lines.append(self._line(self.at))
                items.append(self._item(",]#\n"))
        self.at += 1
        return items, lines

    def _item(self, ends: str) -> Item:
        """Read a text in quotes, or what stands there up to one of `ends`."""
        if self.text[self.at] in _OPENING:
            return self._quoted()
        end = self.at
        while self.text[end] not in ends:
            end += 1
        text = self.text[self.at : end].strip(_BLANK)
        self.at = end
        return Bare(text)

    def _quoted(self) -> str:
        start = self.at
        mark = next((mark for mark in _STRICT if self.text.startswith(mark, start)), "")
        found = _STRICT[mark].match(self.text, start) if mark else None
        lenient = next(_LENIENT[marks] for marks in _LENIENT if self.text[start] in marks)
        bent = None if found or len(mark) > 1 else lenient.match(self.text, start)
        match = found or bent
        if match is None:
            raise _Wrong(
                start,
                "the text in quotes that begins here does not end"
                + ("" if len(mark) > 1 else " in this line"),
                "Write all of it in one line, and the same quote behind it.",
            )
        if damaged(match[0]):
            raise _Wrong(
                start,
                "holds letters that this file's encoding does not have",
                "Save the file as UTF-8 (in Notepad: Save as, Encoding).",
            )
        self.at = match.end()
        if bent:
            return bent[1]
        try:
            return str(tomllib.loads(f"v = {match[0]}")["v"])
        except ValueError:
            raise _Wrong(
                start,
                "holds a \\ that stands for nothing, or a character that cannot be seen",
                "Put a text that holds \\ between two '.",
            ) from None

    def _at_end_of_line(self) -> bool:
        """Pass over blanks; say whether only a comment, if anything, is left of the line."""
        while self.text[self.at] in _BLANK:
            self.at += 1
        if self.text[self.at] == "#":
            line = self._line(self.at)
            self.comments[line] = self.at - self._starts[line - 1]
            self.at = self.text.index("\n", self.at)
        return self.text[self.at] == "\n"

    def _line(self, at: int) -> int:
        return bisect_right(self._starts, at)
