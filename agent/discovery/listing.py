"""All members, read from the listing of the DHT, and kept up to date for little. Used by `node.py`.

What the listing is, `dhtkeys.py` says. The first reading walks to the root and, where a set has
been full, to those below it. Later ones poll the root, the news, and one of the other sets in turn,
so that to ask each second costs a few datagrams whatever the size of the mesh. In a mesh that one
set holds, and while newcomers are fewer than the news has places, a newcomer is seen by the next
poll.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.discovery.dhtkeys import listing_below, listing_key, news_key
from agent.discovery.record import MemberRecord, Signed
from agent.discovery.store import LISTING_FULL
from agent.discovery.walk import Walker
from agent.identity.keys import NodeId

# Sets that are read at the same time.
PARALLEL = 4
# A set is read for so long after the one above it was last full: until its members have had the
# time to move up, which they try each time they publish.
OPEN_S = 900.0

Members = dict[NodeId, MemberRecord]


class Listing:
    """What one node knows of the listing."""

    def __init__(self, mesh_id: bytes, walker: Walker, clock: Callable[[], float]) -> None:
        self._mesh_id = mesh_id
        self._walker = walker
        self._clock = clock
        self._sets: dict[str, Members] = {}
        self._open: dict[str, float] = {}
        self._turn: list[str] = []

    def forget(self) -> None:
        """Trust nothing that was read before: who is a member has changed."""
        for prefix in list(self._sets):
            self._take(prefix, self._walker.known(listing_key(self._mesh_id, prefix)))

    async def read(self) -> Members:
        """Return every member that can be found, the newest record of each."""
        limit = asyncio.Semaphore(PARALLEL)
        await self._read("", limit)
        recent = self._walker.known(news_key(self._mesh_id))
        if self._open:
            recent = await self._walker.poll(news_key(self._mesh_id))
            self._close_old()
            if not self._turn:
                self._turn = sorted(self._open)
            if self._turn:
                await self._read(self._turn.pop(), limit)
        newest: Members = {}
        for members in (*self._sets.values(), _members(recent)):
            for node, record in members.items():
                held = newest.get(node)
                if held is None or record.seq > held.seq:
                    newest[node] = record
        return newest

    async def _read(self, prefix: str, limit: asyncio.Semaphore) -> None:
        """Poll one set, and read those below it that were not open before."""
        async with limit:
            found = await self._walker.poll(listing_key(self._mesh_id, prefix))
        self._take(prefix, found)
        if len(self._sets[prefix]) < LISTING_FULL:
            return
        below = listing_below(prefix)
        unread = [one for one in below if one not in self._open]
        self._open.update(dict.fromkeys(below, self._clock() + OPEN_S))
        await asyncio.gather(*(self._read(one, limit) for one in unread))

    def _take(self, prefix: str, found: list[Signed]) -> None:
        self._sets[prefix] = _members(found)

    def _close_old(self) -> None:
        now = self._clock()
        for prefix in [p for p, until in self._open.items() if until < now]:
            del self._open[prefix]
            self._sets.pop(prefix, None)
            self._turn = [p for p in self._turn if p != prefix]


def _members(found: list[Signed]) -> Members:
    records = (signed.record for signed in found)
    return {r.id: r for r in records if isinstance(r, MemberRecord)}
