"""When workers are started, and when those that do not end are killed: the supervisor's rules.

A core, used by `workers.py`. Workers are numbered from 1.

    a worker   what happens                                  then
    waiting    its time has come                             running
    running    it ends                                       waiting: 0.25, 0.5, 1 … 30 s with each
                                                             end in a row; the first again after it
                                                             has run for a minute
    running    it ends, and none was ever ready              gone, and all stop: to start it again
                                                             would end the same way
    waiting    the gateway stops                             gone
    running    it ends, and the gateway stops                gone
    running    it told at STILL looks in a row, LOOK_S  killed
               apart, no more that it lives
    running    its time is over (`drain_s` and some more,    killed
               or AT_ONCE_S if all end at once)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# A worker takes about a second to start; what fails each time must not take a core for itself.
RESTART_FIRST_S, RESTART_MOST_S = 0.25, 30.0
# Who ran for so long did not end for what made the last one end.
PROVED_S = 60.0
# After the drain: the store is told what was counted, the access log is written, spans are sent.
CLOSE_S = 30.0
AT_ONCE_S = 5.0
# A worker tells twice a second that it lives. One that stands still holds its clients, and the
# kernel hands it new ones; looks are counted, so that a machine that slept blames nobody.
LOOK_S, STILL = 5.0, 4


@dataclass
class _Worker:
    """`since` is when it was started; while it waits, `due` is when it will be.

    `lives`: it has told so since it was started; `still`: at how many looks since it had not again.
    """

    due: float | None
    since: float | None = None
    in_a_row: int = 0
    lives: bool = False
    still: int = 0


class Supervision:
    """The workers of one gateway; `now` is in seconds of a clock that does not go back."""

    def __init__(self, workers: int, drain_s: float, now: float) -> None:
        self._workers = {number: _Worker(now) for number in range(1, workers + 1)}
        self._drain_s = drain_s
        self._until = math.inf
        self._proved = False
        self._looked: dict[int, int] = {}
        self._looked_at = -math.inf
        self.stopping = False
        self.failed = False  # none of them could start

    @property
    def over(self) -> bool:
        """Whether none runs and none is to be started."""
        return not any(x.since is not None or x.due is not None for x in self._workers.values())

    def due(self, now: float) -> list[int]:
        """Return those that are to be started now, which counts as done."""
        found = []
        for number, worker in self._workers.items():
            if worker.due is not None and worker.due <= now:
                worker.due, worker.since = None, now
                found.append(number)
        return found

    def ready(self) -> None:
        """Note that a worker began to serve."""
        self._proved = True

    def ended(self, number: int, now: float) -> float | None:
        """Note that a worker ended; return in how many seconds it starts again, None: it does not.

        `stopping` and `failed` are set where none was ever ready.
        """
        worker = self._workers[number]
        ran_s = now - (now if worker.since is None else worker.since)
        worker.since, worker.lives, worker.still = None, False, 0
        if not self._proved and not self.stopping:
            self.failed = True
            self.stop(now)
        if self.stopping:
            return None
        worker.in_a_row = 0 if ran_s >= PROVED_S else worker.in_a_row
        wait_s = min(RESTART_FIRST_S * 2.0 ** min(worker.in_a_row, 16), RESTART_MOST_S)
        worker.in_a_row += 1
        worker.due = now + wait_s
        return wait_s

    def stop(self, now: float) -> bool:
        """Have all of them end; return whether they are to do so at once: it was said before."""
        at_once = self.stopping
        self.stopping = True
        self._until = now + (AT_ONCE_S if at_once else self._drain_s + CLOSE_S)
        for worker in self._workers.values():
            worker.due = None
        return at_once

    def overdue(self, now: float) -> list[int]:
        """Return those that run although their time is over, again only after a while."""
        if now < self._until:
            return []
        self._until = now + AT_ONCE_S
        return [number for number, worker in self._workers.items() if worker.since is not None]

    def still(self, beats: Mapping[int, int], now: float) -> list[int]:
        """Return those that stand still, by how often each told that it lives."""
        if self.stopping or now - self._looked_at < LOOK_S:
            return []
        before, self._looked, self._looked_at = self._looked, dict(beats), now
        found = []
        for number, worker in self._workers.items():
            told = beats[number] != before.get(number, 0)
            worker.lives = (told or worker.lives) and worker.since is not None
            worker.still = 0 if told or not worker.lives else worker.still + 1
            if worker.still >= STILL:
                found.append(number)
        return found

    def wait_s(self, now: float) -> float:
        """Return how long nothing is to be done unless something happens; may be infinite."""
        times = [worker.due for worker in self._workers.values() if worker.due is not None]
        return max(min([*times, self._until]) - now, 0.0)
