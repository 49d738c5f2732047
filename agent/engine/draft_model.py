"""A draft model: a small second model in the head's process that guesses what answers go on with.

For `generator.py`, which lets it work while frames travel, and before a batch that its guesses are
to fill. `asking.py` decides whose guesses it makes. It guesses greedily; what is said is sampled
from the main model alone. Its caches follow each request: tokens that turned out wrong are cut off,
and whoever ends, or waits, gives its cells back. Whatever goes wrong here ends the guesses, and
nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from agent.engine.asking import Asking
from agent.engine.draft_costs import DraftCosts
from agent.engine.frames import Remove
from agent.engine.llama import Context
from agent.engine.pace import SIZES, Pace
from agent.engine.turns import NO_SEQUENCE, Work
from agent.engine.vocabulary import Vocabulary
from agent.errors import EngineError

log = logging.getLogger(__name__)

# Rows of one of its batches. A prompt is read in such chunks at most, and each row of room costs
# memory for a number for each word that the model knows.
DRAFT_ROWS = 128
# How long to measure before the first request, and how many batches of a size.
_CALIBRATION_S, _OF_A_SIZE = 1.0, 3
# What is between two batches counts as time in which requests were served, up to this.
_BATCH_S = 1.0


class DraftModel:
    """Guesses over the caches of `context`, in which each request has one sequence."""

    def __init__(self, context: Context, vocabulary: Vocabulary) -> None:
        """`vocabulary` is the main model's, whose tokens are the same."""
        self.context = context
        self._vocabulary = vocabulary
        self._positions = min(context.weights.train_context, context.limits.n_ctx)
        self._free = list(range(context.limits.n_seq))
        self._sequences: dict[Work, int] = {}
        # Of each request: how many tokens the caches hold, and for how many there is room.
        self._held: dict[Work, int] = {}
        self._room: dict[Work, int] = {}

    def holds(self, work: Work) -> bool:
        """See that there is room for what a request says; False: it goes without guesses."""
        if work.guessed >= self._positions:
            return False
        # The main model may have more tokens that nobody uses, and one may come all the same.
        new = work.tokens[work.drafts.known : work.guessed]
        if (new >= self.context.weights.n_vocab).any():
            return False
        if work not in self._sequences:
            if not self._free:
                for other in [w for w in self._sequences if w.sequence == NO_SEQUENCE]:
                    self.forget(other)
            if not self._free:
                return False
            self._sequences[work] = self._free.pop()
            self._held[work] = work.drafts.known = 0
        self._room[work] = max(self._held[work], work.guessed)
        return sum(self._room.values()) <= self.context.limits.n_ctx

    def forget(self, work: Work) -> None:
        """Give back what a request holds; harmless for one that holds nothing."""
        work.drafts.known = 0
        if work in self._sequences:
            sequence = self._sequences.pop(work)
            del self._held[work], self._room[work]
            self.context.apply([Remove(sequence)])
            self._free.append(sequence)

    def read(self, work: Work, count: int) -> int:
        """Read the next tokens of a request that holds room, `count` at most; returns how many."""
        stop = min(work.guessed, work.drafts.known + count)
        return sum(self._decode([(work, stop)], guess=False))

    def guess(self, works: Sequence[Work]) -> tuple[int, list[tuple[Work, int | None]]]:
        """Guess the next token of requests that hold room, of as many of them as fit in a batch.

        Returns how many rows that took, and the guesses; None is an answer's end.
        """
        chosen: list[tuple[Work, int]] = []
        room = self.context.limits.n_batch
        for work in works:
            room -= max(1, work.unknown)
            if room >= 0:
                chosen.append((work, work.guessed))
        counts = self._decode(chosen, guess=True)
        found: list[tuple[Work, int | None]] = []
        last = -1
        for (work, _), count in zip(chosen, counts, strict=True):
            last += count
            token = int(self.context.logits(last).argmax())
            found.append((work, None if self._vocabulary.ends(token) else token))
        return sum(counts), found

    def _decode(self, parts: Sequence[tuple[Work, int]], *, guess: bool) -> list[int]:
        """Compute requests up to these numbers of tokens; a guess needs each one's last logits.

        Returns how many rows each took.
        """
        tokens, sequences, positions, marks = [], [], [], []
        counts: list[int] = []
        for work, stop in parts:
            start, sequence = work.drafts.known, self._sequences[work]
            if guess and start == stop:
                # It was read already, without its logits being wanted.
                start -= 1
            if self._held[work] > start:
                self.context.apply([Remove(sequence, start)])
            tokens.append(work.tokens[start:stop])
            sequences.append(np.full(stop - start, sequence, np.int32))
            positions.append(np.arange(start, stop, dtype=np.int32))
            marks.append(np.zeros(stop - start, np.int8))
            marks[-1][-1] = guess
            counts.append(stop - start)
        self.context.decode_tokens(
            np.concatenate(tokens), np.concatenate(sequences), np.concatenate(positions),
            np.concatenate(marks),
        )  # fmt: skip
        for work, stop in parts:
            self._held[work] = work.drafts.known = stop
        return counts

    def measure(self, slots: int) -> list[tuple[int, float]]:
        """Return what batches of some sizes take, before the first request; a second or so."""
        began = time.perf_counter()
        most = self.context.limits.n_batch
        measured: list[tuple[int, float]] = []
        # What it reads is of one request, what it guesses of many.
        for rows, count in [(most, 1), *((n, n) for n in SIZES if n <= min(slots, most))]:
            found = [self._measured_s(rows, count)]
            while len(found) < _OF_A_SIZE and time.perf_counter() - began < _CALIBRATION_S:
                found.append(self._measured_s(rows, count))
            measured.append((rows, min(found)))
            if time.perf_counter() - began > _CALIBRATION_S and len(measured) > 1:
                break
        self.context.clear()
        return measured

    def _measured_s(self, rows: int, sequences: int) -> float:
        """Return what a batch of so many sequences, of equal lengths, takes alone."""
        self.context.clear()
        numbers = np.arange(rows, dtype=np.int32)
        marks = np.zeros(rows, np.int8)
        marks[-sequences:] = 1
        started = time.perf_counter()
        self.context.decode_tokens(0 * numbers, numbers % sequences, numbers // sequences, marks)
        self.context.logits(rows - 1).argmax()
        return time.perf_counter() - started

    def close(self) -> None:
        """Free the context."""
        self.context.close()


class Drafter:
    """Has a draft model do what the schedule asks of it, a piece at a time."""

    def __init__(self, model: DraftModel, asking: Asking, pace: Pace) -> None:
        self._model: DraftModel | None = model
        self._asking = asking
        self._pace = pace
        self._piece_due = False
        self._returned = time.perf_counter()
        asking.begin()

    @property
    def _costs(self) -> DraftCosts:
        return self._pace.drafts

    def calibrate(self, slots: int) -> None:
        """Measure what its batches take."""
        if self._model is not None:
            try:
                self._costs.learn(self._model.measure(slots))
            except EngineError as error:
                self._end(error)

    def returned(self) -> None:
        """Hear that a batch is back."""
        now = time.perf_counter()
        # Longer, and nobody was there.
        self._costs.passed(min(now - self._returned, _BATCH_S))
        self._returned = now
        self._piece_due = True

    def step(self, *, waiting: bool) -> bool:
        """Do a piece of work; returns whether there was any.

        `waiting`: until then nothing else is to do. Else it is one piece for each batch, and what
        is read is little, so that nobody waits for it for long.
        """
        if self._model is None or not (waiting or self._piece_due):
            return False
        try:
            return self._step(self._model, waiting=waiting)
        except EngineError as error:
            self._end(error)
            return False

    def _step(self, model: DraftModel, *, waiting: bool) -> bool:
        asking = self._asking
        if waiting and (works := asking.wanting()):
            self._guess(model, works)
            return True
        if (work := asking.to_read()) is not None:
            self._piece_due = False
            self._read(model, work)
            return True
        if not self._piece_due:
            return False
        self._piece_due = False
        if not self._costs.may_try or (work := asking.untried()) is None:
            return False
        rows = self._pace.reading_rows(model.context.limits.n_batch)
        seconds = self._read(model, work) if work.unknown > rows else self._guess(model, [work])
        self._costs.tried(seconds)
        return True

    def _guess(self, model: DraftModel, works: Sequence[Work]) -> float:
        held = self._held(model, works)
        if not held:
            return 0.0
        began = time.perf_counter()
        rows, found = model.guess(held)
        for work, token in found:
            self._asking.proposed(work, token)
        return self._took(rows, began)

    def _read(self, model: DraftModel, work: Work) -> float:
        if not self._held(model, [work]):
            return 0.0
        began = time.perf_counter()
        return self._took(
            model.read(work, self._pace.reading_rows(model.context.limits.n_batch)), began
        )

    def _held(self, model: DraftModel, works: Sequence[Work]) -> list[Work]:
        """Return those that have room; the others are not asked about again."""
        held = []
        for work in works:
            if model.holds(work):
                held.append(work)
            else:
                model.forget(work)
                work.drafts.model_hit = None
        return held

    def _took(self, rows: int, began: float) -> float:
        seconds = time.perf_counter() - began
        self._pace.drafted(rows, seconds)
        return seconds

    def forget(self, work: Work) -> None:
        """Give back what a request holds."""
        if self._model is not None:
            self._model.forget(work)

    def _end(self, error: EngineError) -> None:
        log.warning("no more guesses by the draft model: %s", error.line())
        self.close()

    def close(self) -> None:
        """Free the model's caches; no guess is made any more."""
        if self._model is not None:
            self._model.close()
            self._model = None
            self._asking.end()
