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
    running  so has it, and a draft model    running  its batch goes once it makes no more, or the
              makes guesses for it                      batch is full (`Asking.wanting`)
    running  its next token is the guess      running  that one's row, if it is computed already,
                                                        says the one after it
    running  its next token is another        running  the rows of its guesses are removed behind
                                                        them, and what they say is not looked at

One rule makes rows: a request's tokens that are not in the caches yet. A prompt's are many, an
answer's last token is one. Those who decode come first. While nobody has a prompt, `pace.py` says
over how many batches they are split; else it is as many as the pipeline has processes, so that no
stage waits, and prompts fill what is left, in chunks. Operations and rows are applied by every
stage in the order of the batches, so what is removed here may still be under way.

Guesses are those of n-grams, and of a draft model where `asking.py` says so.

A prompt's chunk is small enough that its chunks can follow each other through the stages. While
others decode it is so small that their batches take MIXED_COST times as long as without it, by what
batches took before: prompts and answers then have about the same share of the time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agent.engine.asking import LIKELY, Asking
from agent.engine.cells import Cells
from agent.engine.drafts import AHEAD, NOWHERE, blended
from agent.engine.frames import Copy, Operation, Remove
from agent.engine.kept import Kept, KeptSequences
from agent.engine.pace import Pace, Split
from agent.engine.turns import Turn, TurnRows, Work

# Whoever decodes then gets half of its speed while another's prompt is computed.
MIXED_COST = 2.0
# Before it is known what rows cost; and it never gets less, since so few cost next to nothing.
MIXED_ROWS, MIXED_ROWS_MIN = 64, 8
# From so many rows on a batch's time is that of its rows, and not of reading the weights.
COSTLY_ROWS = 48
# How much the newest time counts.
_NEWEST = 0.2
# A prompt goes through a ring in about so many chunks a stage: the first and the last fill the
# stages only in part. Where frames travel for long each chunk costs that too, so they are fewer.
CHUNKS_A_STAGE, CHUNKS_A_FAR_STAGE, FAR_S = 32, 8, 0.005
# Below this llama.cpp's matrices are so small that a row costs more.
CHUNK_ROWS_MIN = 64
# A shorter prefix is computed sooner than it is told about.
PREFIX_MIN = 16
# Who is let in leaves so many cells for each that is already running.
HEADROOM = 32


class Schedule:
    """The requests of one pipeline.

    `cells`: tokens that the caches hold for all together; `rows`: of one batch at most; `slots`:
    requests that run at once; `sequences`: those and the kept ones; `depth`: processes that the
    batches go through. `reuse` False: no prefix is shared and no guess made (a recurrent model
    cannot go back). `guess` False: none is made. `patience`: see `kept.py`.
    """

    def __init__(
        self, *, cells: int, rows: int, slots: int, sequences: int, depth: int,
        reuse: bool = True, guess: bool = True, patience: int = 0,
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
        self.asking = Asking(self._running, self.pace)
        self._kept = KeptSequences(patience)
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
        """Take a request, also one from another schedule that has said something already.

        ValueError for one that could never be served.
        """
        if not 0 < work.length < work.limit <= self._cells.count:
            raise ValueError(f"{work.length} of {work.limit} tokens do not fit")
        work.order = self._order
        self._order += 1
        self.asking.add(work)
        self._waiting.append(work)

    def end(self, work: Work) -> None:
        """A request is over, or nobody wants it any more; it may be under way."""
        if work in self._waiting:
            self._waiting.remove(work)
        elif work in self._running:
            self._running.remove(work)
            self._take_back(work)
            if self._reuse and work.filled >= PREFIX_MIN:
                self._kept.add(Kept(work.sequence, work.tokens[: work.filled].copy()))
            else:
                self._free(work.sequence)

    def sampled(self, work: Work, token: int) -> None:
        """Take the token that follows a request's last certain one."""
        at, drafts = work.length, work.drafts
        guess = int(work.tokens[at]) if work.guessed > at else None
        right = guess == token
        self.asking.judge(work, guess, token)
        if guess is not None:
            if work.filled > at:
                drafts.made += 1
                drafts.right += right
            # At its end they stay of the same branch: another may share its last certain row, which
            # perhaps is not back yet.
            if not right and self._take_back(work):
                work.branch += 1
        work.tokens[at] = token
        work.length += 1
        if work.guessed <= work.length:
            work.guessed, drafts.model_from = work.length, NOWHERE
        if self._guesses:
            drafts.learn(work.tokens, work.length)
            self._guess(work)

    def _guess(self, work: Work) -> None:
        """Add what n-grams guess, or leave the place to a draft model."""
        drafts = work.drafts
        if drafts.model_from != NOWHERE:
            return
        if self.asking.takes(work):
            work.cut(work.guessed - work.unsent)
            return
        ahead = min(AHEAD - (work.guessed - work.length), work.limit - work.guessed)
        work.guessed += drafts.guess(work.tokens, work.guessed, ahead)

    def _take_back(self, work: Work) -> bool:
        """Drop a request's guesses with the rows that they have; return whether they had any."""
        work.cut(work.length)
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
        while (overdue := self._kept.overdue()) is not None:
            self._forget(overdue)
        self._admit()
        rows = TurnRows()
        due = sorted((work for work in self._running if work.due), key=_turn_of)
        steps = [work for work in due if work.due == 1]
        decoding = len(steps) + sum(work.awaited for work in self._running)
        prompts = len(due) > len(steps)
        split = self._split(decoding, prompts=prompts)
        # Where no cell is free, no guess gets a row.
        drafting = split.drafting and self._cells.free > 0
        self.asking.split = replace(split, drafting=drafting)
        if flying >= split.batches or self.asking.wanting():
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
        self._kept.computed(rows.count)
        if self._depth > 1:
            self.pace.rounds.sent(decoding, None if prompts or split.guesses else split)
        turn = rows.turn(self._operations)
        self._operations = []
        return turn

    def _split(self, decoding: int, *, prompts: bool) -> Split:
        """Return how many rows of those who decode a batch has, and how many batches go at once."""
        if prompts or not decoding:
            return Split(self._depth, min(-(-decoding // self._depth), self._rows))
        split = self.pace.split(decoding, self._rows, *self.asking.hits())
        # A pipeline of one process has computed a batch before the next can begin.
        return split if self._depth > 1 else replace(split, batches=1)

    def _add_prompts(self, rows: TurnRows, prompts: list[Work], decoding: int) -> None:
        most = min(self._rows, rows.count + self._mixed()) if decoding else self._rows
        for work in sorted(prompts, key=_urgency):
            count = min(work.due, self._chunk(work), most - rows.count)
            if count > 0 and self._room(count, work, rows):
                self._serve(rows, work, count)

    def _add_guesses(self, rows: TurnRows, share: int) -> None:
        """Fill a batch with the likeliest guesses; nobody gives up cells for one."""
        while rows.count < share and self._cells.free:
            best = max(self._running, key=lambda work: work.chance)
            if best.chance < LIKELY:
                return
            self._serve(rows, best, 1)

    def _serve(self, rows: TurnRows, work: Work, count: int) -> None:
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
        return chunk_rows(work.length, self._depth, self.pace.links_s)

    # While nobody runs, batches can be measured.

    def lend(self, count: int) -> tuple[list[int], tuple[Operation, ...]]:
        """Return up to `count` sequences, each with room for a token, until `give_back`.

        Prefixes go only where too little is free. The operations are to be done before.
        """
        while min(len(self._numbers), self._cells.free) < count and self._evict(None):
            pass
        numbers = self._numbers[: min(count, self._cells.free)]
        del self._numbers[: len(numbers)]
        for number in numbers:
            self._cells.extend(number, 1)
        operations, self._operations = tuple(self._operations), []
        return numbers, operations

    def give_back(self, numbers: list[int]) -> None:
        """Take sequences back, of which nothing is kept."""
        for number in numbers:
            self._free(number)

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
            if self._cells.free < need and isinstance(source, Kept):
                # The prefix itself is in the way.
                self._forget(source)
                source, shared = None, 0
                need = work.length + (reserve if self._running else 0)
            if self._cells.free < need and self._running:
                return
            self._waiting.pop(0)
            self._begin(work, source, shared)
            self._running.append(work)

    def _begin(self, work: Work, source: Work | Kept | None, shared: int) -> None:
        free = bool(self._numbers) or self._evict(source)
        if isinstance(source, Kept):
            self._kept.use(source)
            if not free:
                self._kept.remove(source)
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

    def _prefix(self, work: Work) -> tuple[Work | Kept | None, int]:
        """Return who has the longest prefix of a request in the caches, and how long it is."""
        best: Work | Kept | None = None
        longest = 0
        if self._reuse:
            # The last token is computed in any case: its logits are wanted.
            wanted = work.tokens[: work.length - 1]
            others: list[Work | Kept] = [*self._kept, *self._running]
            for other in others:
                certain = len(other.tokens) if isinstance(other, Kept) else _certain(other)
                there = other.tokens[:certain]
                count = min(len(there), len(wanted))
                differing = np.flatnonzero(there[:count] != wanted[:count])
                common = int(differing[0]) if len(differing) else count
                if common > longest:
                    best, longest = other, common
        return (best, longest) if longest >= PREFIX_MIN else (None, 0)

    def _room(self, count: int, work: Work, rows: TurnRows) -> bool:
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
        work.give_up()
        self._waiting.append(work)

    def _evict(self, spared: Work | Kept | None) -> bool:
        """Forget the kept sequence that was not used for longest; False when there is none."""
        for kept in self._kept:
            if kept is not spared:
                self._forget(kept)
                return True
        return False

    def _forget(self, kept: Kept) -> None:
        self._kept.remove(kept)
        self._free(kept.sequence)

    def _free(self, sequence: int) -> None:
        """Have all stages remove a sequence; its number and its cells are free at once."""
        self._operations.append(Remove(sequence))
        self._cells.cut(sequence)
        self._numbers.append(sequence)


def chunk_rows(length: int, depth: int, links_s: float) -> int:
    """Return in what chunks a prompt goes through `depth` processes, over links of such delay."""
    chunks = CHUNKS_A_FAR_STAGE if links_s > FAR_S else CHUNKS_A_STAGE
    return max(CHUNK_ROWS_MIN, -(-length // (chunks * (depth - 1))))


def _certain(work: Work) -> int:
    """Return how many tokens of a request are in the caches for good."""
    return min(work.filled, work.length)


def _learnt(before: float | None, seconds: float) -> float:
    return seconds if before is None else blended(before, seconds, _NEWEST)


def _urgency(work: Work) -> tuple[int, int]:
    return -work.priority, work.order


def _turn_of(work: Work) -> int:
    return work.served
