"""What an answer may go on with, guessed from what it already says: n-grams. A core.

Text repeats itself: code, lists, quotations of the prompt. Where the last tokens stood before, what
followed them there is a guess at what follows now, and a guess costs nothing to make. Whether it is
worth a row depends on how often guesses came true lately (`hit`), which is watched even while none
is computed. `batching.py` has guesses computed and takes back those that were wrong.
"""

from __future__ import annotations

from agent.engine.frames import Ints

# A match of so many tokens counts; the longer first.
_LENGTHS = (4, 2)
# So many guesses are made ahead of what is certain.
AHEAD = 32
_HIT_FIRST, _NEWEST = 0.5, 0.15


class Drafts:
    """The guesses of one request. `made` were computed, and `right` of those came true."""

    def __init__(self) -> None:
        self.hit = _HIT_FIRST
        self.made = self.right = 0
        self._after: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in _LENGTHS)
        self._learnt = 0

    def learn(self, tokens: Ints, length: int) -> None:
        """Take note of the first `length` tokens, those that are certain."""
        start = max(0, self._learnt - max(_LENGTHS))
        said = tokens[start:length].tolist()
        for count, after in zip(_LENGTHS, self._after, strict=True):
            for at in range(max(self._learnt, count), length):
                after[tuple(said[at - count - start : at - start])] = at
        self._learnt = length

    def guess(self, tokens: Ints, stop: int, count: int) -> int:
        """Write up to `count` guesses behind the first `stop` tokens; return how many."""
        for length, after in zip(_LENGTHS, self._after, strict=True):
            if stop < length:
                continue
            source = after.get(tuple(tokens[stop - length : stop].tolist()))
            if source is None:
                continue
            count = min(count, len(tokens) - stop)
            # What is copied may itself be a guess: a loop goes on as it went.
            for at in range(count):
                tokens[stop + at] = tokens[source + at]
            return max(0, count)
        return 0

    def judged(self, came_true: bool) -> None:
        """Take note of whether the next guess was right."""
        self.hit += _NEWEST * (came_true - self.hit)
