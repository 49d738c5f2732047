"""How long rounds really take, by how they are split. A core; `now` is any clock that goes on.

What batches take one at a time, before the first request, does not say everything of batches that
follow each other: a container's quota is handed out in slices, two CPUs may be one core, other
work comes and goes. So a split that was used counts by what its rounds took, and another is tried
only where its estimate is better than that. Estimates are on the fast side, so what is tried turns
out slower or is better; either way it is known then, for a while. For `pace.py`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.engine.pace import Split

# So many rounds are measured at once, and the least of the last few such times counts: other work
# disturbs, and never speeds up.
_ROUNDS, _KEPT = 3, 3
# Contexts grow and machines get busy or idle: what was seen so many batches ago is not known now.
_FORGOTTEN = 2_000


@dataclass
class _Seen:
    took_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    at: int = 0


class Rounds:
    """Watches the batches of those who decode: `sent` with how they are split, `back` as they come.

    A time counts from when all batches of a split that has not changed meanwhile were back once.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, Split], _Seen] = {}
        self._key: tuple[int, Split] | None = None
        self._batches = 0
        self._back = self._rows = 0
        self._began = 0.0

    def sent(self, decoding: int, split: Split | None) -> None:
        """Hear that a batch has left; `split` None: with rows of prompts or guesses."""
        key = None if split is None else (decoding, split)
        if key != self._key:
            self._key, self._back = key, 0

    def back(self, rows: int, now: float) -> None:
        """Hear that a batch of so many rows, all of them decoding, is back."""
        self._batches += 1
        if self._key is None:
            return
        decoding, split = self._key
        self._back += 1
        if self._back <= split.batches:
            self._began, self._rows = now, 0
            return
        self._rows += rows
        if self._back == (1 + _ROUNDS) * split.batches:
            seen = self._seen.setdefault(self._key, _Seen())
            seen.took_s.append((now - self._began) * decoding / self._rows)
            seen.at = self._batches
            self._back, self._rows, self._began = split.batches, 0, now

    def took_s(self, decoding: int, split: Split) -> float | None:
        """Return how long a round of so many answers took, split so; None where that is unknown."""
        seen = self._seen.get((decoding, split))
        if seen is None or self._batches - seen.at > _FORGOTTEN:
            return None
        return min(seen.took_s)
