"""What a batch is made of: the requests in it, its rows, and what is wanted of them. A core.

`batching.py` makes turns of works; `generator.py` sends their batches through the pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from agent.engine.drafts import AHEAD, Drafts
from agent.engine.frames import Ints, Marks, Operation

NO_SEQUENCE = -1


@dataclass(eq=False)
class Work:
    """One request in the schedule. `tokens` has room for `limit`, of which `length` are certain.

    The first are the prompt, the others what was sampled; up to `guessed` follow guesses. Of all
    these, `filled` are in the caches, or on their way there. A higher `priority` is served first.
    `reused` of the prompt's tokens were in the caches before it came. `branch` counts wrong
    guesses that had rows.
    """

    tokens: Ints
    length: int
    priority: int = 0
    order: int = 0
    sequence: int = NO_SEQUENCE
    filled: int = 0
    guessed: int = 0
    branch: int = 0
    reused: int = 0
    served: int = 0
    drafts: Drafts = field(default_factory=Drafts)

    @classmethod
    def of(cls, prompt: Sequence[int], limit: int, priority: int = 0) -> Work:
        """Return the work of a prompt that may become `limit` tokens long in all."""
        tokens = np.empty(limit, np.int32)
        tokens[: len(prompt)] = prompt
        return cls(tokens, len(prompt), priority, guessed=len(prompt))

    @property
    def limit(self) -> int:
        """How many tokens it may have in all."""
        return len(self.tokens)

    @property
    def due(self) -> int:
        """How many certain tokens are not in the caches yet."""
        return max(0, self.length - self.filled)

    @property
    def awaited(self) -> bool:
        """Whether the row of its last certain token is under way."""
        return self.filled >= self.length

    @property
    def chance(self) -> float:
        """How likely its next guess, the first that has no row, is to be right; 0: it has none."""
        if not self.awaited or self.filled >= min(self.guessed, self.limit - 1):
            return 0.0
        drafts = self.drafts
        hit = drafts.hit if self.filled < drafts.model_from else drafts.model_hit or 0.0
        return float(hit ** (self.filled - self.length + 1))

    @property
    def draft_chance(self) -> float:
        """How likely what a draft model would add to its guesses is to be right; 0: nothing is."""
        drafts, ahead = self.drafts, self.guessed - self.length
        there = self.guessed < self.limit - 1 and self.guessed != drafts.ends_at and ahead < AHEAD
        return float(drafts.model_hit ** (ahead + 1)) if there and drafts.model_hit else 0.0

    @property
    def unsent(self) -> int:
        """How many of its guesses have no row."""
        return self.guessed - max(self.length, min(self.filled, self.guessed))

    @property
    def unknown(self) -> int:
        """How many of its tokens, guesses too, a draft model would have to compute for the next."""
        return self.guessed - self.drafts.known

    def give_up(self) -> None:
        """Have nothing in the caches any more; what it says will be computed again."""
        self.sequence, self.filled = NO_SEQUENCE, 0
        self.cut(self.length)

    def move(self) -> None:
        """Leave a schedule, whose caches are gone, for another one."""
        self.give_up()
        self.drafts.known = 0
        # The other counts its turns anew; that it was served before still counts.
        self.served = min(self.served, 1)

    def cut(self, length: int) -> None:
        """Drop its guesses from `length` on."""
        self.guessed = length
        self.drafts.cut(length)


@dataclass(frozen=True, eq=False)
class Batch:
    """Operations, then tokens with their sequences and positions, and marks (1: logits wanted)."""

    operations: tuple[Operation, ...] = ()
    tokens: Ints = field(default_factory=lambda: np.empty(0, np.int32))
    sequences: Ints = field(default_factory=lambda: np.empty(0, np.int32))
    positions: Ints = field(default_factory=lambda: np.empty(0, np.int32))
    outputs: Marks = field(default_factory=lambda: np.empty(0, np.int8))


class Wanted(NamedTuple):
    """A row whose next token is to be sampled; one of another `branch` is of no use any more."""

    row: int
    work: Work
    branch: int

    @property
    def stale(self) -> bool:
        """Whether it follows a guess that was wrong."""
        return self.branch != self.work.branch


@dataclass(frozen=True, eq=False)
class Turn:
    """A batch, whose it is, and of which rows the next token is to be sampled."""

    batch: Batch
    wanted: tuple[Wanted, ...]
    works: frozenset[Work]

    def useful(self) -> Ints | None:
        """Return which rows count still, in order; None for all of them."""
        stale = [wanted.row for wanted in self.wanted if wanted.stale]
        if not stale:
            return None
        return np.delete(np.arange(len(self.batch.tokens), dtype=np.int32), stale)


@dataclass
class TurnRows:
    """The parts of a turn that is being made."""

    tokens: list[Ints] = field(default_factory=list)
    sequences: list[Ints] = field(default_factory=list)
    positions: list[Ints] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)
    works: set[Work] = field(default_factory=set)
    count: int = 0

    def take(self, work: Work, count: int) -> None:
        """Add the next `count` tokens of a work; its last certain one and guesses are marked."""
        start, stop = work.filled, work.filled + count
        self.tokens.append(work.tokens[start:stop])
        self.sequences.append(np.full(count, work.sequence, np.int32))
        self.positions.append(np.arange(start, stop, dtype=np.int32))
        for position in range(max(start, work.length - 1), stop):
            self.wanted.append(Wanted(self.count + position - start, work, work.branch))
        self.count += count
        self.works.add(work)
        work.filled = stop

    def turn(self, operations: Sequence[Operation]) -> Turn:
        """Return the batch."""
        outputs = np.zeros(self.count, np.int8)
        outputs[[each.row for each in self.wanted]] = 1
        batch = Batch(
            tuple(operations), np.concatenate(self.tokens), np.concatenate(self.sequences),
            np.concatenate(self.positions), outputs,
        )  # fmt: skip
        return Turn(batch, tuple(self.wanted), frozenset(self.works))
