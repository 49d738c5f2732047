"""What a node does once a second, for as long as it runs. Used by `node.py`.

    each tick     one ping, to whoever was not heard of for longest, if that is long enough; repeat
                  what is due of our own records; tell others when it changed whether we serve
    each 30 s     forget records that hold no more
    each 5 min,   walk towards our own key and one other; greet someone who is not in the table
    first in 30 s
    nobody known  try to come back, less and less often

One ping a second is the bound whatever the size of the table: with the 30 contacts of a small mesh
each is asked every half minute, with 150 (1,000 nodes) every two and a half minutes. Who is dead is
mostly found by lookups, and costs the first of them the time of a slow answer (0.1 to 0.5 s).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.protocol import Protocol
from agent.discovery.publish import Publisher
from agent.discovery.rejoin import Rejoin
from agent.discovery.walk import Walker

log = logging.getLogger(__name__)

TICK_S = 1.0
# Contacts not heard for this long are asked whether they are there, at most so many in a tick.
QUIET_S = 30.0
PINGS_PER_TICK = 1
PURGE_S = 30.0
REFRESH_S = 300.0
# The first comes soon: whoever was misled when it came meets others then.
FIRST_REFRESH_S = 30.0
# Tries to come back when nobody is known: the first after 2 s, then doubling to 30 s.
RETRY_MIN_S, RETRY_MAX_S = 2.0, 30.0
REMEMBERED_MAX = 64


@dataclass
class Memory:
    """Whom a node could greet: what outlives a restart."""

    contacts: list[Contact]
    endpoints: list[str]

    def remember(self, contacts: list[Contact]) -> None:
        """Put these first, those heard last at the head; REMEMBERED_MAX are kept."""
        newest = sorted(contacts, key=lambda c: c.heard, reverse=True)
        known = {contact.id for contact in newest}
        older = [c for c in self.contacts if c.id not in known]
        self.contacts = (newest + older)[:REMEMBERED_MAX]


class Upkeep:
    """The chores of one node; times are loop times in s."""

    def __init__(
        self,
        own_key: bytes,
        protocol: Protocol,
        walker: Walker,
        publisher: Publisher,
        rejoin: Rejoin,
        memory: Memory,
        rng: random.Random,
        purge: Callable[[], None],
    ) -> None:
        """`purge` forgets what holds no more."""
        self._own_key = own_key
        self._protocol = protocol
        self._walker = walker
        self._publisher = publisher
        self._rejoin = rejoin
        self._memory = memory
        self._rng = rng
        self._purge = purge
        now = asyncio.get_running_loop().time()
        self._purge_at = now + PURGE_S
        self._refresh_at = now + FIRST_REFRESH_S * rng.uniform(0.5, 1.5)
        self._retry_at, self._retry_s = 0.0, RETRY_MIN_S

    async def run(self) -> None:
        """Do the chores until cancelled; a fault of ours in one does not end the others."""
        loop = asyncio.get_running_loop()
        chores: list[Callable[[float], Awaitable[None]]]
        chores = [self._ping, self._reach, self._publish, self._forget, self._refresh, self._return]
        while True:
            await asyncio.sleep(TICK_S)
            for chore in chores:
                try:
                    await chore(loop.time())
                except Exception:
                    log.exception("discovery.upkeep_failed chore=%s", chore.__name__)

    async def _ping(self, now: float) -> None:
        quiet = [c for c in self._protocol.router.contacts() if now - c.heard > QUIET_S]
        for contact in sorted(quiet, key=lambda c: c.heard)[:PINGS_PER_TICK]:
            self._protocol.ask(contact.node, contact.address, messages.Ping())

    async def _reach(self, now: float) -> None:
        if self._protocol.reach_changed.is_set():
            self._protocol.reach_changed.clear()
            log.info("discovery.reach reachable=%s", self._protocol.reach.reachable)
            await self._rejoin.tell_reach()
        self._rejoin.start_test()

    async def _publish(self, now: float) -> None:
        await self._publisher.repeat_due()

    async def _forget(self, now: float) -> None:
        if now >= self._purge_at:
            self._purge_at = now + PURGE_S
            self._purge()
            self._memory.remember(self._protocol.router.contacts())

    async def _refresh(self, now: float) -> None:
        if now < self._refresh_at or not self._protocol.router.contacts():
            return
        self._refresh_at = now + REFRESH_S * self._rng.uniform(0.8, 1.2)
        await self._walker.nodes(self._own_key)
        await self._walker.nodes(self._rng.randbytes(len(self._own_key)))
        await self._rejoin.look_around(self._memory.contacts, self._memory.endpoints)

    async def _return(self, now: float) -> None:
        if self._protocol.router.contacts():
            self._retry_at, self._retry_s = now + RETRY_MIN_S, RETRY_MIN_S
        elif now >= self._retry_at and (self._memory.endpoints or self._memory.contacts):
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
            self._retry_at = now + self._retry_s
            await self._rejoin.join(self._memory.contacts, self._memory.endpoints)
