"""The last lines that an engine process logged, numbered: who looks again sees only new ones.

A core, used by `supervisor.py`.
"""

from __future__ import annotations

from collections import deque

LINES = 50
# Longer ones are cut: a line is for people.
LINE_CHARACTERS = 500


class Tail(deque[str]):
    """The last `LINES` lines; `total` counts all that there ever were."""

    def __init__(self) -> None:
        super().__init__(maxlen=LINES)
        self.total = 0

    def append(self, line: str, /) -> None:
        """Take a line; what is not printable becomes a space."""
        clean = "".join(c if c.isprintable() else " " for c in line[:LINE_CHARACTERS])
        super().append(clean.rstrip())
        self.total += 1
