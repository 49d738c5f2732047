"""Which texts of which requests go into the next batch, where each text is computed in one piece.

A core, for `embedder.py`. Requests take turns, a text of each at a time, so that one with a
thousand texts does not hold up one with a single text. Whoever is first in the line is always
served, and whoever was passed over because it did not fit stays before those who were served:
nobody waits for more batches than there are requests before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar


@dataclass(eq=False)
class Texts:
    """A request: the sizes of its texts in tokens, at least one; `begun` of them are in a batch."""

    sizes: Sequence[int]
    begun: int = 0


_AnyTexts = TypeVar("_AnyTexts", bound=Texts)


class Packing(Generic[_AnyTexts]):
    """The requests that wait.

    A batch has at most `sequences` texts and `rows` tokens; a text that is longer is alone in its.
    """

    def __init__(self, *, rows: int, sequences: int) -> None:
        if rows < 1 or sequences < 1:
            raise ValueError(f"{rows} rows of {sequences} sequences make no batch")
        self._rows = rows
        self._sequences = sequences
        self._line: deque[_AnyTexts] = deque()

    @property
    def waiting(self) -> int:
        """How many requests have texts that are in no batch yet."""
        return len(self._line)

    def add(self, request: _AnyTexts) -> None:
        """Take a request; ValueError for one without texts or with an empty one."""
        if not request.sizes or min(request.sizes) < 1:
            raise ValueError("a request has at least one text, and a text at least one token")
        self._line.append(request)

    def end(self, request: _AnyTexts) -> None:
        """Nobody wants a request any more; harmless when nothing of it waits."""
        if request in self._line:
            self._line.remove(request)

    def next(self) -> list[tuple[_AnyTexts, int]]:
        """Return the next batch as (request, number of its text) pairs; empty when nobody waits."""
        batch: list[tuple[_AnyTexts, int]] = []
        left = self._rows
        turns = deque(self._line)
        while turns and len(batch) < self._sequences:
            request = turns.popleft()
            size = request.sizes[request.begun]
            if batch and size > left:
                continue
            batch.append((request, request.begun))
            left -= size
            request.begun += 1
            self._line.remove(request)
            if request.begun < len(request.sizes):
                self._line.append(request)
                turns.append(request)
        return batch
