"""When a request that waits for its first byte is sent to a second replica as well.

A core, used by `proxy.py`, one `Hedge` for each attempt that may have a second one; `attempts.py`
asks it, sends, and lets the first byte win. Its rules:

    state     what happens                                               then
    waiting   its first byte is not overdue yet                          looks when it would be
    waiting   it is overdue, and no other replica has a place and is     looks again when it has
              predicted to be clearly sooner, or the budget is empty     waited twice as long
    waiting   it is overdue, another is sooner, and the budget has one   sent
    sent      anything                                                   stays so: once a request

Who has waited for a while, past all that was expected, waits for as long again: no more is known
of the rest. A request is overdue as its replica stands still or is swamped; when all are swamped,
nobody is predicted to be clearly sooner.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gateway.retries import Budget
from gateway.routing import Attempt, Picked, Router

# A replica that answers in milliseconds is late after some more for reasons that are over by then.
LEAST_S = 0.1
# Predictions err: within so much of the wait another one has to be predicted. With all of it twice
# as many are sent, and half of them win, for the same gain (tests/bench/routing.py).
CLEARLY = 0.5
# A replica that stands still shows in a few requests at once, before the budget can have grown.
MOST = 10.0


def budget(percent: float) -> Budget:
    """Return the budget of hedges, as a share of all requests."""
    return Budget(percent / 100, MOST)


class Hedge:
    """Of one attempt, `first`, at a replica; `without` are the URLs that are out of the question.

    `most`: a replica with so many requests has no place. `free` says whether the model has places
    at all, which is not so while other requests wait for theirs.
    """

    def __init__(
        self, router: Router, budget: Budget, first: Attempt, without: frozenset[str], most: int,
        free: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._router = router
        self._budget = budget
        self._first = first
        self._without = without | {first.url}
        self._most = most
        self._free = free
        self.second: Picked | None = None

    def look(self, now: float) -> Picked | float:
        """Return whom to ask as well, now, or in how many seconds to look again (inf: never)."""
        if self.second is not None:
            return math.inf
        waited_s = now - self._first.begun
        due_s = max(self._router.overdue_in_s(self._first, now), LEAST_S - waited_s)
        if due_s > 0:
            return due_s
        second = (
            self._router.second(self._first, self._without, CLEARLY * waited_s, self._most, now)
            if self._free()
            else None
        )
        if second is None or not self._budget.take():
            return waited_s
        self.second = second
        return second
