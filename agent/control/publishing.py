"""What this node publishes: sealed in order, and no faster than other nodes take it.

Used by `host.py`, on the asyncio loop. Others refuse what is over an author's rate (`authors.py`);
a node that keeps below it never loses a message for that.
"""

from __future__ import annotations

import asyncio
import secrets
import time

from agent.control import envelope
from agent.identity.keys import NodeKey

# Below what others take from one author, since they may have just started to count.
RATE_PER_S = 8.0
BURST = 150.0


class Publisher:
    """Seals this node's messages."""

    def __init__(self, key: NodeKey) -> None:
        self._key = key
        self._sent_ms = 0
        # Random at the start: a clock that was set back must not make a name a second time.
        self._sequence = secrets.randbits(32)
        self._tokens, self._at = BURST, time.monotonic()
        self._turn = asyncio.Lock()

    async def seal(self, topic: str, payload: bytes) -> bytes:
        """Return the next message, when it may be sent; ValueError as `envelope.seal`."""
        async with self._turn:
            now = time.monotonic()
            self._tokens = min(BURST, self._tokens + (now - self._at) * RATE_PER_S) - 1
            self._at = now
            if self._tokens < 0:
                await asyncio.sleep(-self._tokens / RATE_PER_S)
            self._sent_ms = max(self._sent_ms, int(time.time() * 1000))
            self._sequence += 1
            return envelope.seal(self._key, topic, payload, self._sent_ms, self._sequence)
