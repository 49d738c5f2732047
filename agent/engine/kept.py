"""Sequences whose work is over, kept as prefixes for others, and for how long. A core.

llama.cpp looks for each row at all that its cache holds, whosever it is: without flash attention it
computes the attention to all of it and masks the others' afterwards. So what is kept for reuse
costs everybody who decodes meanwhile a little; a cache that is full of it can double what a lone
answer's token takes. Nobody knows whether it will be used again, so it goes once it has cost as
much as computing it anew would: that is at most twice what was best in hindsight (rent or buy).
While nothing is computed it costs nothing, and stays. Where hardly anything of what was kept was
ever used, the rest goes sooner in proportion: such clients ask each time something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.engine.frames import Ints

# A multiplication of attention, of f16 values one row at a time, takes as long as so many of
# weights in a prompt's batch (docs/benchmarks.md). Flash attention looks at the mask first.
_DEAR, _DEAR_MASKED_FIRST = 4.0, 0.7
# How much the newest counts among what was used or not, what is taken for likely before anything
# is known, and the least share of the patience left.
_NEWEST, _USED_FIRST, _SHARE_LEAST = 1 / 8, 1 / 2, 1 / 16


def patience(layer_weights: float, n_embd: int, *, flash_attention: bool) -> int:
    """Return how many rows may pass by a token before they cost as much as computing it.

    A token costs a multiplication for each of a layer's weights, and each row that attends to it
    two for each of its values.
    """
    dear = _DEAR_MASKED_FIRST if flash_attention else _DEAR
    return max(1, int(layer_weights / (2 * n_embd * dear)))


@dataclass(eq=False)
class Kept:
    """A sequence whose work is over; `tokens` are those in the caches, `used` by another since."""

    sequence: int
    tokens: Ints
    since: int = 0
    used: bool = False


class KeptSequences:
    """All of them, the one that was not used for longest first.

    `patience`: rows that others may compute before one that nobody used goes; 0 is no bound.
    """

    def __init__(self, patience: int = 0) -> None:
        self._patience = patience
        self._found: list[Kept] = []
        self._rows = 0
        self._used_share = _USED_FIRST

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._found)

    def computed(self, rows: int) -> None:
        """Note that so many rows were computed."""
        self._rows += rows

    def add(self, kept: Kept) -> None:
        """Take one that was used just now."""
        kept.since = self._rows
        self._found.append(kept)

    def remove(self, kept: Kept) -> None:
        """Drop one."""
        self._found.remove(kept)
        if not kept.used:
            self._learn(0.0)

    def use(self, kept: Kept) -> None:
        """Note that another begins with one, which stays."""
        self._found.remove(kept)
        kept.used = True
        self._learn(1.0)
        self.add(kept)

    def _learn(self, used: float) -> None:
        self._used_share += _NEWEST * (used - self._used_share)

    def overdue(self) -> Kept | None:
        """Return one that has cost as much as it could save, if there is one."""
        if self._patience and self._found:
            first = self._found[0]
            share = max(self._used_share, _SHARE_LEAST)
            if self._rows - first.since >= self._patience * share:
                return first
        return None
