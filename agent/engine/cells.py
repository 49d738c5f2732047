"""Which cells of a KV cache are taken, and by which sequences. A core, and arithmetic alone.

llama.cpp's unified cache has one cell for each position of each sequence, except that sequences
made by a copy share cells until both are gone. All stages of a ring apply the same operations in
the same order, so the head's account here is that of every stage. Used by `batching.py`.
"""

from __future__ import annotations

import numpy as np


class Cells:
    """The account of `count` cells over the sequences 0 … `sequences` - 1."""

    def __init__(self, count: int, sequences: int) -> None:
        self.count = count
        self._users = np.zeros(count, np.int32)
        self._free = list(range(count))
        self._held: list[list[int]] = [[] for _ in range(sequences)]

    @property
    def free(self) -> int:
        """How many cells nobody holds."""
        return len(self._free)

    def length(self, sequence: int) -> int:
        """Return how many positions a sequence has."""
        return len(self._held[sequence])

    def extend(self, sequence: int, count: int) -> None:
        """Give a sequence so many cells more; ValueError when there are fewer."""
        if count > len(self._free):
            raise ValueError(f"{count} cells are wanted, {len(self._free)} are free")
        if count:
            taken = self._free[-count:]
            del self._free[-count:]
            self._users[taken] = 1
            self._held[sequence] += taken

    def share(self, source: int, target: int, count: int) -> None:
        """Let `target`, which is empty, share the first `count` positions of `source`."""
        shared = self._held[source][:count]
        if self._held[target] or len(shared) != count:
            raise ValueError(f"sequence {target} cannot share {count} cells of {source}")
        self._users[shared] += 1
        self._held[target] = shared

    def cut(self, sequence: int, start: int = 0) -> None:
        """Let a sequence forget its positions from `start` on."""
        lost = np.array(self._held[sequence][start:], np.int64)
        del self._held[sequence][start:]
        if len(lost):
            self._users[lost] -= 1
            self._free += lost[self._users[lost] == 0].tolist()
