"""What batches of some sizes take on a pipeline, measured one batch at a time, for `pace.py`.

For `generator.py`, while it has no request: all at once before the first one, which takes some
seconds, less where that one waits already; what is left then, and all of it on a pipeline that took
the place of another, a batch at each idle moment, so that no request waits for more than the one.
"""

from __future__ import annotations

import time

import numpy as np

from agent.engine.batching import Schedule
from agent.engine.draft_model import Drafter
from agent.engine.pace import Calibration, Measured
from agent.engine.pipeline import Pipeline
from agent.engine.turns import Batch


class Measuring:
    """Call `step` until it is `over`; the schedule's pace then knows what batches take.

    Where steps are hurried it is `known` before, about. `most`: sequences of the largest batch.
    `drafter`: a draft model that is measured as well.
    """

    def __init__(
        self, pipeline: Pipeline, schedule: Schedule, most: int, drafter: Drafter | None
    ) -> None:
        self.known = self.over = False
        self._pipeline = pipeline
        self._schedule = schedule
        self._most = most
        self._drafter = drafter
        self._calibration = Calibration(most)
        self._links: Measured | None = None
        self._spent_s = 0.0

    def step(self, *, hurried: bool = False) -> None:
        """Measure one batch, which must be the only one; raises what the pipeline raises."""
        if self._links is None:
            if self._drafter is not None:
                self._drafter.calibrate(self._most)
            self._links = self._measured(0)
            return
        rows = self._calibration.next(self._spent_s, hurried=hurried)
        if rows is not None:
            began = time.perf_counter()
            self._calibration.add(self._measured(rows))
            self._spent_s += time.perf_counter() - began
            return
        links = min(self._links, self._measured(0), key=lambda each: each.away_s)
        self._schedule.pace.learn(self._calibration.best, links.away_s)
        self.known, self.over = True, self._calibration.next(self._spent_s) is None

    def _measured(self, rows: int) -> Measured:
        """Return what a batch of so many sequences' first tokens takes alone."""
        lent, operations = self._schedule.lend(rows)
        numbers = np.array(lent, np.int32)
        zeros, marks = np.zeros(rows, np.int32), np.ones(rows, np.int8)
        before, began = self._pipeline.stats.decode_s, time.perf_counter()
        self._pipeline.submit(Batch(operations, zeros, numbers, zeros, marks))
        self._pipeline.collect()
        own_s = self._pipeline.stats.decode_s - before
        away_s = time.perf_counter() - began - own_s
        self._schedule.give_back(lent)
        return Measured(rows, own_s, away_s)
