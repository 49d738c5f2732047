"""What waits to be sent on one gossip link, and how it is put into RPCs. A core.

Used by `gossip.py`. Messages wait in order; control entries (a few bytes each) go first. When more
than MAX_BYTES wait, the oldest messages go: the link is told later what it has missed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from agent.control import rpc

# A link that is slower than this many bytes in its queue is told, not sent, what there is.
MAX_BYTES = 1024 * 1024
# Several messages go as one RPC: a stream's frame and its encryption cost more than a message.
RPC_BYTES = 64 * 1024
MAX_MESSAGES_PER_RPC = 128
MAX_IDS_PER_RPC = 500
# Ids to tell or to ask for; the rest is told when the queue is empty.
MAX_IDS = 8192


class Outbox:
    """The queue of one link; false while it is empty."""

    def __init__(self) -> None:
        self._messages: OrderedDict[bytes, tuple[str, bytes]] = OrderedDict()
        self._bytes = 0
        self._subscriptions: dict[str, None] = {}
        self._graft: dict[str, None] = {}
        self._iwant: dict[bytes, None] = {}
        self._ihave: dict[bytes, str] = {}
        self._dropped = False

    def __bool__(self) -> bool:
        return bool(
            self._messages or self._subscriptions or self._graft or self._iwant or self._ihave
        )

    def subscribe(self, topics: Iterable[str]) -> None:
        """Say that we want these topics."""
        self._subscriptions.update(dict.fromkeys(topics))

    def graft(self, topic: str) -> None:
        """Ask for whole messages of a topic."""
        self._graft[topic] = None

    def ihave(self, topic: str, ids: Iterable[bytes]) -> None:
        """Tell of messages; what is queued is not told."""
        for name in ids:
            if name in self._messages:
                continue
            if len(self._ihave) >= MAX_IDS:
                self._dropped = True
                return
            self._ihave[name] = topic

    def iwant(self, ids: Iterable[bytes]) -> None:
        """Ask for messages."""
        for name in ids:
            if len(self._iwant) >= MAX_IDS:
                return
            self._iwant[name] = None

    def publish(self, name: bytes, topic: str, data: bytes) -> None:
        """Send a message; one that waits already is sent once."""
        if name in self._messages:
            return
        self._messages[name] = (topic, data)
        self._bytes += len(data)
        self._ihave.pop(name, None)
        while self._bytes > MAX_BYTES:
            _, (_, oldest) = self._messages.popitem(last=False)
            self._bytes -= len(oldest)
            self._dropped = True

    def caught_up(self) -> bool:
        """Say, once, that the queue is empty after something was dropped from it."""
        if self or not self._dropped:
            return False
        self._dropped = False
        return True

    def take(self) -> bytes | None:
        """Return the next RPC, or None while there is nothing to send."""
        if not self:
            return None
        out = rpc.Rpc(subscriptions=[(topic, True) for topic in self._subscriptions])
        out.graft = list(self._graft)
        self._subscriptions.clear()
        self._graft.clear()
        ids = MAX_IDS_PER_RPC
        out.iwant = [self._iwant.popitem()[0] for _ in range(min(ids, len(self._iwant)))]
        ids -= len(out.iwant)
        told: dict[str, list[bytes]] = {}
        for name in list(self._ihave)[:ids]:
            told.setdefault(self._ihave.pop(name), []).append(name)
        out.ihave = list(told.items())
        size = 0
        while self._messages and size < RPC_BYTES and len(out.published) < MAX_MESSAGES_PER_RPC:
            _, (topic, data) = self._messages.popitem(last=False)
            self._bytes -= len(data)
            size += len(data)
            out.published.append((topic, data))
        return rpc.encode(out)
