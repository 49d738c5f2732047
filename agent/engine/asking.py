"""What a draft model is asked: whose guesses it makes, and what it has to read for them. A core.

Part of the schedule (`batching.py`). `draft_model.py` answers. A request's guesses are a draft
model's where n-grams have none, or have been right less often than it; whether it is asked at all
is for `pace.py` to say (`Split.drafting`), by how often it was right and what its guesses take.

It has to have read what a request says before. A little it reads along with the next guess of
each (`READ_ALONG`); more, such as a prompt, is read in chunks that hold nobody up (`to_read`), and
only for an answer that may get long enough to make up for it. Where it is not asked, a guess now
and then that gets no row shows how often it would be right (`untried`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from agent.engine.drafts import AHEAD, NOWHERE, blended
from agent.engine.pace import Drafted, Pace, Split
from agent.engine.turns import Work

# A guess that is less likely to be reached, and right, gets no row.
LIKELY = 0.2
# So many tokens a draft model reads together with those of others, for the next guess of each.
READ_ALONG = 16
# What its first guesses are taken for, and how much each later one counts for new requests.
_FIRST, _NEWEST = 0.7, 0.02


class Asking:
    """Decides over `running`, the schedule's own list. `split` is how they are served now."""

    def __init__(self, running: Sequence[Work], pace: Pace) -> None:
        self._running = running
        self._pace = pace
        self._hit: float | None = None  # of all requests; None: there is no draft model
        self.split = Split(1, 1)

    def begin(self) -> None:
        """There is a draft model from now on."""
        self._hit = _FIRST

    def end(self) -> None:
        """There is none any more."""
        self._hit = None
        self.split = replace(self.split, drafting=False)

    def add(self, work: Work) -> None:
        """Let a new request begin with what others have seen."""
        work.drafts.model_hit = self._hit

    def judge(self, work: Work, guess: int | None, token: int) -> None:
        """Take the token that came where there was this guess, or none."""
        judged = work.drafts.judge(work.length, guess, token)
        if judged is not None and self._hit is not None:
            self._hit = blended(self._hit, judged, _NEWEST)

    def hits(self) -> tuple[float, Drafted]:
        """Return how likely a guess is to be right on average, 0 for who has none: without, and
        with the draft model.
        """
        works = self._running
        asked = [self._suits(work) for work in works]
        plain = [_plain(work) for work in works]
        both = [
            (work.drafts.model_hit or 0.0) if ask else hit
            for work, ask, hit in zip(works, asked, plain, strict=True)
        ]
        return _mean(plain), Drafted(_mean(both), _mean(asked))

    def takes(self, work: Work) -> bool:
        """Whether a request's guesses are to be a draft model's now."""
        return self.split.drafting and self._suits(work)

    def wanting(self) -> list[Work]:
        """Return whose next guess is to be made now, so that the next batch gets full."""
        if not self.split.drafting:
            return []
        if sum(work.due + _likely(work) for work in self._running) >= self.split.rows:
            return []
        return [
            work for work in self._running
            if work.draft_chance >= LIKELY and work.unknown <= READ_ALONG and self._suits(work)
        ]  # fmt: skip

    def to_read(self) -> Work | None:
        """Return whose tokens are to be read before it can have guesses."""
        behind = [w for w in self._running if w.unknown > READ_ALONG and self.takes(w)]
        return min(behind, key=_unknown, default=None)

    def untried(self) -> Work | None:
        """Return of whom a guess that gets no row would show how often the draft model is right."""
        if any(work.due > 1 for work in self._running):
            return None
        found = [
            work for work in self._running
            if work.guessed == work.length and work.drafts.expected is None and work.draft_chance
            and not self.takes(work)
        ]  # fmt: skip
        return min(found, key=_unknown, default=None)

    def proposed(self, work: Work, token: int | None) -> None:
        """Take the next guess of a request; None: the answer ends here."""
        if token is None:
            work.drafts.ends_at = work.guessed
            return
        work.drafts.model_from = min(work.drafts.model_from, work.guessed)
        work.tokens[work.guessed] = token
        work.guessed += 1

    def _suits(self, work: Work) -> bool:
        hit = work.drafts.model_hit
        if self._hit is None or hit is None or hit < LIKELY or hit <= _plain(work) or work.due > 1:
            return False
        left = work.limit - work.length
        return work.unknown <= READ_ALONG or self._pace.pays_back(work.unknown, left)


def _plain(work: Work) -> float:
    """Return how likely what n-grams guess next is to be right; 0 where they guess nothing."""
    drafts = work.drafts
    guesses = drafts.expected is not None or work.length < min(work.guessed, drafts.model_from)
    return drafts.hit if guesses else 0.0


def _likely(work: Work) -> int:
    """Return how many of its guesses without a row are likely enough to get one."""
    drafts = work.drafts
    hit = drafts.hit if drafts.model_from == NOWHERE else drafts.model_hit or 0.0
    if hit < LIKELY:
        return 0
    deepest = AHEAD if hit >= 1.0 else int(math.log(LIKELY) / math.log(hit))
    return max(0, min(work.unsent, work.length + deepest - max(work.length, work.filled)))


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / max(1, len(numbers))


def _unknown(work: Work) -> int:
    return work.unknown
