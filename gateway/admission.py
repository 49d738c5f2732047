"""Who may run when there are more requests than places: fair shares between clients.

A core, used by `gate.py`, one for each model. The next place goes to the client with the fewest
running requests for its weight, of those that tie to the one that had its turn longest ago; of
one client's requests the one with the highest priority goes first, then the oldest. So a client
gains nothing by asking more, or by calling everything urgent.

    state     what happens                                          then
    -         it comes and there is a place                         running
    -         it comes, all places are taken                        waiting
    -         it comes, the queue is full, and no other client      refused
              has more waiting than its own would then have
    waiting   the queue is full, its client has the most waiting,   refused
              and it is the last of them
    waiting   a place is free and it is its turn                    running
    any       it leaves                                             left
"""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass, field

# Departures older than this say nothing of how fast the queue empties now.
RATE_S = 60.0
RETRY_AFTER_LEAST_S, RETRY_AFTER_MOST_S = 1, 60
# Nobody has left yet, so nobody knows.
RETRY_AFTER_UNKNOWN_S = 5


class State(enum.Enum):
    """As in the table above."""

    RUNNING = "running"
    WAITING = "waiting"
    REFUSED = "refused"
    LEFT = "left"


@dataclass(eq=False)
class Place:
    """A request in the queue, or running."""

    client: str
    priority: int
    order: int
    state: State = State.WAITING


@dataclass
class _Client:
    weight: float = 1.0
    running: int = 0
    turn: int = 0
    waiting: list[Place] = field(default_factory=list)

    def next(self) -> Place:
        return min(self.waiting, key=lambda place: (-place.priority, place.order))

    def last(self) -> Place:
        return max(self.waiting, key=lambda place: (-place.priority, place.order))


class Admission:
    """The queue of one model; at most `most_waiting` wait. `limit` is how many may run now."""

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._clients: dict[str, _Client] = {}
        self._departures: deque[float] = deque(maxlen=64)
        self._changed: list[Place] = []
        self._order = 0
        self.running = 0
        self.waiting = 0

    def ask(
        self, client: str, now: float, limit: int, priority: int = 0, weight: float = 1.0
    ) -> Place:
        """Return the request's place; its state says whether it runs, waits or is refused."""
        self._order += 1
        place = Place(client, priority, self._order)
        known = self._clients.setdefault(client, _Client())
        known.weight = weight
        known.waiting.append(place)
        self.waiting += 1
        self._admit(limit)
        if self.waiting > self._most_waiting:
            self._refuse_one(known)
        self._forget(client)
        return place

    def leave(self, place: Place, now: float, limit: int) -> None:
        """Note that a request is done, or has given up waiting; another one may run."""
        if place.state is State.RUNNING:
            self._clients[place.client].running -= 1
            self.running -= 1
            self._departures.append(now)
        elif place.state is State.WAITING:
            self._clients[place.client].waiting.remove(place)
            self.waiting -= 1
        if place.state in (State.RUNNING, State.WAITING):
            place.state = State.LEFT
            self._forget(place.client)
        self._admit(limit)  # more may run than before, too

    def changed(self) -> list[Place]:
        """Return those whose wait has ended since this was last asked, run or refused."""
        changed, self._changed = self._changed, []
        return changed

    def retry_after_s(self, now: float) -> int:
        """Return when a client that is refused should come again: when the queue will be empty."""
        recent = [at for at in self._departures if now - at <= RATE_S]
        if not recent:
            return RETRY_AFTER_UNKNOWN_S
        each_s = max(now - recent[0], 1e-3) / len(recent)
        wait_s = math.ceil((self.waiting + 1) * each_s)
        return min(max(wait_s, RETRY_AFTER_LEAST_S), RETRY_AFTER_MOST_S)

    def _admit(self, limit: int) -> None:
        while self.waiting and self.running < limit:
            waiting = (client for client in self._clients.values() if client.waiting)
            client = min(waiting, key=lambda c: (c.running / c.weight, c.turn))
            place = client.next()
            client.waiting.remove(place)
            client.running += 1
            client.turn = self._order
            self.waiting -= 1
            self.running += 1
            place.state = State.RUNNING
            self._changed.append(place)

    def _refuse_one(self, newcomer: _Client) -> None:
        longest = max(self._clients.values(), key=lambda c: (len(c.waiting), c is newcomer))
        place = longest.last()
        longest.waiting.remove(place)
        self.waiting -= 1
        place.state = State.REFUSED
        self._changed.append(place)

    def _forget(self, name: str) -> None:
        client = self._clients.get(name)
        if client is not None and not client.running and not client.waiting:
            del self._clients[name]
