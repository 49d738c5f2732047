"""The questions of one node that are in flight: repeated once, then given up.

Used by `protocol.py`. It starts no task: timers and futures only.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import Callable
from dataclasses import dataclass

from agent.discovery import messages
from agent.discovery.liveness import Liveness
from agent.identity.keys import NodeId

# A bound on memory that no honest load reaches.
PENDING_MAX = 4096
# An answer that comes after its timeout still shows that its node lives (a busy machine).
LATE_S = 3.0

Address = tuple[str, int]
Answer = tuple[NodeId, messages.Reply]
Future = asyncio.Future[Answer | None]


@dataclass(slots=True)
class Pending:
    """A question in flight. `peer` None: whoever answers at the address. Times are loop times.

    It is sent again, given up and forgotten, each at its time; `next_at` is when the next is due.
    """

    question: messages.Question
    peer: NodeId | None
    address: Address
    future: Future
    asked_at: float
    give_up_at: float
    next_at: float
    repeated: bool = False
    given_up: bool = False


class Questions:
    """What one node has asked and not been answered yet.

    Most questions are answered long before anything is due, so that one timer serves all: it wakes
    for the first that was due when it was set, and looks which are in flight still.
    """

    def __init__(
        self,
        liveness: Liveness,
        send: Callable[[bytes, Pending], bool],
        lost: Callable[[Pending], None],
    ) -> None:
        """`send` puts a question on the wire, False when it cannot; `lost` is told of no answer."""
        self._loop = asyncio.get_running_loop()
        self._liveness = liveness
        self._send = send
        self._lost = lost
        self._pending: dict[bytes, Pending] = {}
        self._due: list[tuple[float, bytes]] = []
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def ask(self, peer: NodeId | None, address: Address, question: messages.Question) -> Future:
        """Ask, and return a future: who answered what, or None after a second at the latest."""
        future: Future = self._loop.create_future()
        ident, now = os.urandom(messages.ID_BYTES), self._loop.time()
        life = self._liveness
        pending = Pending(
            question, peer, address, future, now, now + life.timeout_s, now + life.repeat_s
        )
        if len(self._pending) >= PENDING_MAX or not self._send(ident, pending):
            future.set_result(None)
            return future
        self._pending[ident] = pending
        self._wait_for(ident, pending)
        return future

    def find(self, ident: bytes, sender: NodeId) -> Pending | None:
        """Return the question that this sender's answer is to, or None."""
        pending = self._pending.get(ident)
        if pending is None or pending.peer not in (None, sender):
            return None
        return pending

    def waits(self, ident: bytes) -> bool:
        """Say whether the question is still in flight."""
        return ident in self._pending

    def resolve(self, ident: bytes, answer: Answer | None) -> None:
        """End a question."""
        pending = self._pending.pop(ident, None)
        if pending is not None and not pending.future.done():
            pending.future.set_result(answer)

    def drop(self, node: NodeId) -> None:
        """End all questions to one node."""
        for ident in [i for i, p in self._pending.items() if p.peer == node]:
            self.resolve(ident, None)

    def close(self) -> None:
        """End all questions."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due.clear()
        for ident in list(self._pending):
            self.resolve(ident, None)

    def _wait_for(self, ident: bytes, pending: Pending) -> None:
        heapq.heappush(self._due, (pending.next_at, ident))
        if self._timer is None or pending.next_at < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(pending.next_at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._due:
            due, ident = self._due[0]
            pending = self._pending.get(ident)
            if pending is not None and due > now:
                self._timer = self._loop.call_at(due, self._wake)
                return
            heapq.heappop(self._due)
            if pending is not None:
                self._next(ident, pending, now)

    def _next(self, ident: bytes, pending: Pending, now: float) -> None:
        """Repeat a question, then give it up; listen on for the sake of the routing table."""
        if pending.given_up:
            self.resolve(ident, None)
            return
        if not pending.repeated:
            pending.repeated, pending.next_at = True, pending.give_up_at
            self._send(ident, pending)
        else:
            pending.given_up, pending.next_at = True, now + LATE_S
            self._lost(pending)
            if not pending.future.done():
                pending.future.set_result(None)
        heapq.heappush(self._due, (pending.next_at, ident))
