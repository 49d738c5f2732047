"""Which messages a node lacks, whom it asked, and what it will ask for again. A core.

Used by `gossip.py`. A message is asked for from one link at a time, or every link that tells of it
would send it. One that was refused for now (its author is no member yet, or writes too much) is
asked for again later, or as soon as there are new members.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict

# A message that was asked for and has not come is asked for elsewhere after this.
ASK_AGAIN_S = 0.4
# One that was refused for now is asked for again after each of these.
RETRY_S = (1.0, 5.0, 25.0)
MAX_WANTED = 4096
MAX_RETRIED = 1024


class Wanted:
    """Ids of messages that are missing; `now` is monotonic seconds."""

    def __init__(self) -> None:
        # id → when it may be asked for again
        self._asked: OrderedDict[bytes, float] = OrderedDict()
        # (due, id, link), and how often each id has been refused
        self._retries: list[tuple[float, bytes, bytes]] = []
        self._refused: OrderedDict[bytes, int] = OrderedDict()

    def ask(self, name: bytes, now: float) -> bool:
        """Say whether to ask for a message now, and take it as asked for."""
        if self._asked.get(name, now) > now:
            return False
        self._wait(name, now + ASK_AGAIN_S)
        return True

    def refused(self, name: bytes, link: bytes, now: float) -> None:
        """A message has come and does not count for now: plan to ask the link again."""
        self._wait(name, now + RETRY_S[0])
        step = self._refused.get(name, 0)
        if step == len(RETRY_S):
            return
        self._refused[name] = step + 1
        if len(self._refused) > MAX_RETRIED:
            self._refused.popitem(last=False)
        if len(self._retries) < MAX_RETRIED:
            heapq.heappush(self._retries, (now + RETRY_S[step], name, link))

    def hurry(self, now: float) -> None:
        """What was refused may count now: ask again at once."""
        self._retries = [(now, name, link) for _, name, link in self._retries]

    def came(self, name: bytes) -> None:
        """A message is here, or is never wanted."""
        self._asked.pop(name, None)
        self._refused.pop(name, None)

    def due(self, now: float) -> list[tuple[bytes, bytes]]:
        """Return (id, link) of what is to be asked for again."""
        found = []
        while self._retries and self._retries[0][0] <= now:
            _, name, link = heapq.heappop(self._retries)
            if name in self._refused:
                self._wait(name, now + ASK_AGAIN_S)
                found.append((name, link))
        return found

    def wake_at(self) -> float | None:
        """Return when `due` has something, or None."""
        return self._retries[0][0] if self._retries else None

    def __len__(self) -> int:
        return len(self._asked)

    def _wait(self, name: bytes, until: float) -> None:
        self._asked[name] = until
        self._asked.move_to_end(name)
        if len(self._asked) > MAX_WANTED:
            self._asked.popitem(last=False)
