"""What an answer may go on with, guessed from what it already says. A core.

N-grams: text repeats itself (code, lists, quotations of the prompt). Where the last tokens stood
before, what followed them there is a guess at what follows now, and costs nothing to make. Where
there is none, or a draft model's guesses come true more often, those of the draft model are taken
(`draft_model.py` has them made; `batching.py` asks for them only while they are worth their time).

Whether guesses are worth their rows depends on how often they came true lately (`hit`,
`model_hit`), which is watched even while none is computed. `batching.py` has guesses computed and
takes back those that were wrong.
"""

from __future__ import annotations

from agent.engine.frames import Ints

# A match of so many tokens counts; the longer first.
_LENGTHS = (4, 2)
# So many guesses are made ahead of what is certain.
AHEAD = 32
_HIT_FIRST, _NEWEST = 0.5, 0.15
# Later than any token.
NOWHERE = 2**31


class Drafts:
    """The guesses of one request. `made` were computed, and `right` of those came true.

    `hit`: how often n-grams were right; `model_hit`: how often the draft model was, None where
    there is none, or none any more for this request. Its guesses begin at `model_from`, those
    before are n-grams'. `known` counts the tokens in its caches, `ends_at` is where it ends the
    answer.
    """

    def __init__(self) -> None:
        self.hit = _HIT_FIRST
        self.model_hit: float | None = None
        self.made = self.right = 0
        self.model_from = self.ends_at = NOWHERE
        self.known = 0
        self.expected: int | None = None  # what n-grams say comes next
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
        source = self._source(tokens, length)
        self.expected = None if source is None else int(tokens[source])

    def guess(self, tokens: Ints, stop: int, count: int) -> int:
        """Write up to `count` guesses behind the first `stop` tokens; return how many."""
        source = self._source(tokens, stop)
        if source is None:
            return 0
        count = min(count, len(tokens) - stop)
        # What is copied may itself be a guess: a loop goes on as it went.
        for at in range(count):
            tokens[stop + at] = tokens[source + at]
        return max(0, count)

    def _source(self, tokens: Ints, stop: int) -> int | None:
        """Return what follows where the last of `stop` tokens stood before, as an index."""
        for length, after in zip(_LENGTHS, self._after, strict=True):
            if stop >= length:
                source = after.get(tuple(tokens[stop - length : stop].tolist()))
                if source is not None:
                    return source
        return None

    def judge(self, at: int, guess: int | None, token: int) -> float | None:
        """Take note of which token came at a place where there was this guess, or none.

        Returns whether the draft model was right, as a number; None: it had said nothing.
        """
        by_model = at >= self.model_from
        said = self.expected if guess is None or by_model else guess
        if said is not None:
            self.hit = blended(self.hit, said == token)
        if self.model_hit is None or not (by_model or at == self.ends_at):
            return None
        right = float(guess == token)
        self.model_hit = blended(self.model_hit, right)
        return right

    def cut(self, length: int) -> None:
        """Forget the guesses from `length` on."""
        self.known = min(self.known, length)
        if self.ends_at >= length:
            self.ends_at = NOWHERE
        if self.model_from >= length:
            self.model_from = NOWHERE


def blended(before: float, newest: float, weight: float = _NEWEST) -> float:
    """Return a running average with one more value."""
    return before + weight * (newest - before)
