"""Which rows go into the next batch: continuous batching over a ring. A core, without llama.cpp.

    state    event                            becomes  does
    -----    -----                            -------  ----
    waiting  a sequence and cells are free    running  shares the longest prefix that is kept
    running  a batch has room                 running  rows: one when it decodes, else a chunk
    running  the row of its last token came   running  its next token, by whoever samples
    running  no cell is free, and it is the   waiting  gives up its cells; what it had said is
              least urgent, then the youngest           computed again, with its prompt
    any      it ended, or was cancelled       kept     its sequence stays as a prefix for others,
                                                        until its cells or its number are needed
    running  a batch would be emptier than    running  rows of what it may say next (`drafts.py`)
              `pace.py` says, and there are
              guesses that are likely enough
    running  its next token is the guess      running  that one's row, if it is computed already,
                                                        says the one after it
    running  its next token is another        running  the rows of its guesses are removed behind
                                                        them, and what they say is not looked at

One rule makes rows: a request's tokens that are not in the caches yet. A prompt's are many, an
answer's last token is one. Those who decode come first. While nobody has a prompt, `pace.py` says
over how many batches they are split; else it is as many as the pipeline has processes, so that no
stage waits, and prompts fill what is left, in chunks. Operations and rows are applied by every
stage in the order of the batches, so what is removed here may still be under way.

A prompt's chunk is small enough that its chunks can follow each other through the stages. While
others decode it is so small that their batches take MIXED_COST times as long as without it, by what
batches took before: prompts and answers then have about the same share of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from agent.engine.cells import Cells
from agent.engine.drafts import AHEAD, Drafts
from agent.engine.frames import Copy, Ints, Marks, Operation, Remove
from agent.engine.pace import Pace, Split

# Whoever decodes then gets half of its speed while another's prompt is computed.
MIXED_COST = 2.0
# Before it is known what rows cost; and it never gets less, since so few cost next to nothing.
MIXED_ROWS, MIXED_ROWS_MIN = 64, 8
# From so many rows on a batch's time is that of its rows, and not of reading the weights.
COSTLY_ROWS = 48
# How much the newest time counts.
_NEWEST = 0.2
# A prompt goes through a ring in about so many chunks a stage: the first and the last fill the
# stages only in part.
CHUNKS_A_STAGE = 8
# Below this llama.cpp's matrices are so small that a row costs more.
CHUNK_ROWS_MIN = 64
# A shorter prefix is computed sooner than it is told about.
PREFIX_MIN = 16
# Who is let in leaves so many cells for each that is already running.
HEADROOM = 32
# A guess that is less likely to be reached, and right, gets no row.
LIKELY = 0.2
_NONE = -1


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
    sequence: int = _NONE
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
        return float(self.drafts.hit ** (self.filled - self.length + 1))


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


@dataclass(eq=False)
class _Kept:
    """A sequence whose work is over; `tokens` are those in the caches."""

    sequence: int
    tokens: Ints


@dataclass
class _Rows:
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


class Schedule:
    """The requests of one pipeline.

    `cells`: tokens that the caches hold for all together; `rows`: of one batch at most; `slots`:
    requests that run at once; `sequences`: those and the kept ones; `depth`: processes that the
    batches go through. `reuse` False: no prefix is shared and no guess made (a recurrent model
    cannot go back). `guess` False: none is made.
    """

    def __init__(
        self, *, cells: int, rows: int, slots: int, sequences: int, depth: int,
        reuse: bool = True, guess: bool = True,
    ) -> None:  # fmt: skip
        if not 0 < slots <= sequences or rows < 1 or depth < 1:
            raise ValueError(f"{slots} slots, {sequences} sequences, {rows} rows make no schedule")
        self._cells = Cells(cells, sequences)
        self._rows = rows
        self._slots = slots
        self._depth = depth
        self.pace = Pace(depth)
        self._reuse = reuse
        self._guesses = guess and reuse
        self._numbers = list(range(sequences))
        self._waiting: list[Work] = []
        self._running: list[Work] = []
        self._kept: list[_Kept] = []  # the one that was used last is the last
        self._operations: list[Operation] = []
        self._order = self._turns = 0
        self._steps_s: float | None = None  # of a batch in which nobody has a prompt
        self._row_s: float | None = None

    @property
    def waiting(self) -> int:
        """How many requests have no sequence yet, or none any more."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many requests have a sequence."""
        return len(self._running)

    @property
    def free_cells(self) -> int:
        """How many cells nobody holds, not even for a prefix."""
        return self._cells.free

    def add(self, work: Work) -> None:
        """Take a request; ValueError for one that could never be served."""
        if not 0 < work.length < work.limit <= self._cells.count:
            raise ValueError(f"{work.length} of {work.limit} tokens do not fit")
        work.order = self._order
        self._order += 1
        self._waiting.append(work)

    def end(self, work: Work) -> None:
        """A request is over, or nobody wants it any more; it may be under way."""
        if work in self._waiting:
            self._waiting.remove(work)
        elif work in self._running:
            self._running.remove(work)
            self._take_back(work)
            if self._reuse and work.filled >= PREFIX_MIN:
                self._kept.append(_Kept(work.sequence, work.tokens[: work.filled].copy()))
            else:
                self._free(work.sequence)

    def sampled(self, work: Work, token: int) -> None:
        """Take the token that follows a request's last certain one."""
        at = work.length
        guess = int(work.tokens[at]) if work.guessed > at else None
        if guess is not None:
            right = guess == token
            work.drafts.judged(right)
            if work.filled > at:
                work.drafts.made += 1
                work.drafts.right += right
            # At its end they stay of the same branch: another may share its last certain row, which
            # perhaps is not back yet.
            if not right and self._take_back(work):
                work.branch += 1
        work.tokens[at] = token
        work.length += 1
        work.guessed = max(work.guessed, work.length)
        if self._guesses:
            work.drafts.learn(work.tokens, work.length)
            ahead = min(AHEAD - (work.guessed - work.length), work.limit - work.guessed)
            work.guessed += work.drafts.guess(work.tokens, work.guessed, ahead)

    def _take_back(self, work: Work) -> bool:
        """Drop a request's guesses with the rows that they have; return whether they had any."""
        work.guessed = work.length
        if work.filled <= work.length:
            return False
        self._operations.append(Remove(work.sequence, work.length))
        self._cells.cut(work.sequence, work.length)
        work.filled = work.length
        return True

    def took(self, turn: Turn, seconds: float) -> None:
        """Learn how long a stage, the same each time, computed a batch."""
        rows = len(turn.batch.tokens)
        if rows == len(turn.works):
            self._steps_s = _learnt(self._steps_s, seconds)
        elif rows >= COSTLY_ROWS:
            self._row_s = _learnt(self._row_s, seconds / rows)

    def next(self, flying: int) -> Turn | None:
        """Return the next batch; None when there is nothing to do until one of `flying` is back."""
        self._admit()
        rows = _Rows()
        due = sorted((work for work in self._running if work.due), key=_turn_of)
        steps = [work for work in due if work.due == 1]
        decoding = len(steps) + sum(work.awaited for work in self._running)
        prompts = len(due) > len(steps)
        split = self._split(decoding, prompts=prompts)
        if flying >= split.batches:
            return None
        for work in steps:
            if rows.count < split.rows and self._room(1, work, rows):
                self._serve(rows, work, 1)
        if prompts:
            self._add_prompts(rows, [work for work in due if work.due > 1], decoding)
        elif split.guesses:
            self._add_guesses(rows, split.rows)
        if not rows.count:
            return None
        turn = rows.turn(self._operations)
        self._operations = []
        return turn

    def _split(self, decoding: int, *, prompts: bool) -> Split:
        """Return how many rows of those who decode a batch has, and how many batches go at once."""
        if prompts or not decoding:
            return Split(self._depth, min(-(-decoding // self._depth), self._rows))
        split = self.pace.split(decoding, self._rows, self._hit())
        # A pipeline of one process has computed a batch before the next can begin.
        return split if self._depth > 1 else replace(split, batches=1)

    def _hit(self) -> float:
        """Return how likely a guess is to be right, on average; 0 for who has none."""
        found = [w.drafts.hit if w.guessed > w.length else 0.0 for w in self._running]
        return sum(found) / len(found) if found else 0.0

    def _add_prompts(self, rows: _Rows, prompts: list[Work], decoding: int) -> None:
        most = min(self._rows, rows.count + self._mixed()) if decoding else self._rows
        for work in sorted(prompts, key=_urgency):
            count = min(work.due, self._chunk(work), most - rows.count)
            if count > 0 and self._room(count, work, rows):
                self._serve(rows, work, count)

    def _add_guesses(self, rows: _Rows, share: int) -> None:
        """Fill a batch with the likeliest guesses; nobody gives up cells for one."""
        while rows.count < share and self._cells.free:
            best = max(self._running, key=lambda work: work.chance)
            if best.chance < LIKELY:
                return
            self._serve(rows, best, 1)

    def _serve(self, rows: _Rows, work: Work, count: int) -> None:
        self._cells.extend(work.sequence, count)
        self._turns += 1
        work.served = self._turns
        rows.take(work, count)

    def _mixed(self) -> int:
        """Return how many rows of prompts go beside those who decode."""
        if self._steps_s is None or self._row_s is None:
            return MIXED_ROWS
        return max(MIXED_ROWS_MIN, int(MIXED_COST * self._steps_s / self._row_s))

    def _chunk(self, work: Work) -> int:
        if self._depth == 1:
            return self._rows
        return max(CHUNK_ROWS_MIN, -(-work.length // (CHUNKS_A_STAGE * (self._depth - 1))))

    # Who has cells.

    def _admit(self) -> None:
        """Let in who waits, the most urgent first, and nobody past one for whom there is no room.

        Whoever ran before is let in again only once what it needs is really there.
        """
        self._waiting.sort(key=_urgency)
        while self._waiting and len(self._running) < self._slots:
            work = self._waiting[0]
            source, shared = self._prefix(work)
            reserve = sum(min(HEADROOM, other.limit - other.length) for other in self._running)
            need = work.length - shared + (reserve if self._running else 0)
            while self._cells.free < need and self._evict(source):
                pass
            if self._cells.free < need and isinstance(source, _Kept):
                # The prefix itself is in the way.
                self._forget(source)
                source, shared = None, 0
                need = work.length + (reserve if self._running else 0)
            if self._cells.free < need and self._running:
                return
            self._waiting.pop(0)
            self._begin(work, source, shared)
            self._running.append(work)

    def _begin(self, work: Work, source: Work | _Kept | None, shared: int) -> None:
        free = bool(self._numbers) or self._evict(source)
        if isinstance(source, _Kept):
            self._kept.remove(source)
            if free:
                self._kept.append(source)
        if free:
            work.sequence = self._numbers.pop()
            if source is not None:
                self._operations.append(Copy(source.sequence, work.sequence, 0, shared))
                self._cells.share(source.sequence, work.sequence, shared)
        elif source is not None:
            # All other numbers are those of running ones: the prefix becomes the new sequence.
            work.sequence = source.sequence
            self._operations.append(Remove(source.sequence, shared))
            self._cells.cut(source.sequence, shared)
        if not work.served:
            # Whoever comes a second time may find its own words, told by another with its prompt.
            work.reused = shared
        work.filled = shared

    def _prefix(self, work: Work) -> tuple[Work | _Kept | None, int]:
        """Return who has the longest prefix of a request in the caches, and how long it is."""
        best: Work | _Kept | None = None
        longest = 0
        if self._reuse:
            # The last token is computed in any case: its logits are wanted.
            wanted = work.tokens[: work.length - 1]
            others: list[Work | _Kept] = [*self._kept, *self._running]
            for other in others:
                certain = len(other.tokens) if isinstance(other, _Kept) else _certain(other)
                there = other.tokens[:certain]
                count = min(len(there), len(wanted))
                differing = np.flatnonzero(there[:count] != wanted[:count])
                common = int(differing[0]) if len(differing) else count
                if common > longest:
                    best, longest = other, common
        return (best, longest) if longest >= PREFIX_MIN else (None, 0)

    def _room(self, count: int, work: Work, rows: _Rows) -> bool:
        """See that `count` cells are free for a request; False when it has to wait."""
        while work in self._running:
            if self._cells.free >= count:
                return True
            if self._evict(None):
                continue
            # Whose token is under way is spared: it would come back to nobody. And what is removed
            # goes before this batch's rows, so who has some in it is spared as well.
            idle = [w for w in self._running if not w.awaited and w not in rows.works]
            last = max(idle, key=_urgency)
            if last is work and len(idle) < len(self._running):
                return False
            self._preempt(last)
        return False

    def _preempt(self, work: Work) -> None:
        self._running.remove(work)
        self._free(work.sequence)
        work.sequence, work.filled, work.guessed = _NONE, 0, work.length
        self._waiting.append(work)

    def _evict(self, spared: Work | _Kept | None) -> bool:
        """Forget the kept sequence that was not used for longest; False when there is none."""
        for kept in self._kept:
            if kept is not spared:
                self._forget(kept)
                return True
        return False

    def _forget(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        self._free(kept.sequence)

    def _free(self, sequence: int) -> None:
        """Have all stages remove a sequence; its number and its cells are free at once."""
        self._operations.append(Remove(sequence))
        self._cells.cut(sequence)
        self._numbers.append(sequence)


def _certain(work: Work) -> int:
    """Return how many tokens of a request are in the caches for good."""
    return min(work.filled, work.length)


def _learnt(before: float | None, seconds: float) -> float:
    return seconds if before is None else before + _NEWEST * (seconds - before)


def _urgency(work: Work) -> tuple[int, int]:
    return -work.priority, work.order


def _turn_of(work: Work) -> int:
    return work.served
