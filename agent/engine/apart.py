"""Whether few rows are computed together or one after the other: by what both took. A core.

llama.cpp reads the weights once for a batch, but on some CPUs its matrices of two to seven columns
are so slow that as many lone rows, each of which reads all weights, are done sooner. Which are,
depends on the CPU, the weights' types and the build; so both are tried, and looked at again now and
then. For `llama.py`.
"""

from __future__ import annotations

from collections import deque

# So many rows are always faster together: llama.cpp's matrices are whole then.
ROWS_MAX = 8
# Of the last so many times the least counts: other work disturbs, and never speeds up.
_KEPT = 5
# Contexts grow and machines get busy: each so many batches of a size the other way is tried again.
_AGAIN = 200
# Together, apart, and together again: the first of a size has llama.cpp set up its work.
_FIRST = (False, True, False)


class Apart:
    """Ask `wanted` before each batch, and give what it took to `took`."""

    def __init__(self) -> None:
        self._batches = [0] * ROWS_MAX
        self._took = [
            (deque[float](maxlen=_KEPT), deque[float](maxlen=_KEPT)) for _ in range(ROWS_MAX)
        ]

    def wanted(self, rows: int) -> bool:
        """Say whether the next batch of so many rows had best be computed row by row."""
        if not 1 < rows < ROWS_MAX:
            return False
        seen = self._batches[rows]
        if seen < len(_FIRST):
            return _FIRST[seen]
        together, apart = self._took[rows]
        return (min(apart) < min(together)) != (seen % _AGAIN == 0)

    def took(self, rows: int, seconds: float, *, apart: bool) -> None:
        """Learn what a batch took that was computed as `wanted` said."""
        if 1 < rows < ROWS_MAX:
            self._batches[rows] += 1
            self._took[rows][apart].append(seconds)
