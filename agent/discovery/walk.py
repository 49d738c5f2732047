"""The walk towards a key: drives a `Lookup` over the protocol and keeps what it finds.

Used by `node.py`, `listing.py` and `publish.py`. A walk takes at most WALK_S after its last find,
and nothing that others answer, or do not, makes it raise.

Who asks for the same key again and again polls: two of those that were nearest in the last walk are
asked for what is new, which is four datagrams where a walk takes some forty. Each word stands at
ten nodes, so that any two will do; a full walk comes when they do not answer, when a nearer node
has come, and every half minute.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.lookup import REPLICAS, Lookup
from agent.discovery.protocol import Protocol
from agent.discovery.questions import Future
from agent.discovery.record import Signed
from agent.discovery.store import DIGEST_BYTES, PROVIDERS_MAX, RecordStore, digest, digests

# A walk's end when nothing new comes: a round of timeouts and some for who looks where to store, so
# that all is done within 2 s; two rounds for who looks for a record.
WALK_S, FIND_S = 1.6, 2.5
# Its end whatever comes: 128 records at one a datagram, from slow nodes.
LONG_WALK_S = 10.0
# Pages of a set that one node may give in one walk: 256 records at one a datagram.
PAGES_MAX = 256
# Pages without anything new that one node may give in a row before it is asked no more.
IDLE_PAGES = 6
# Whom a poll asks. One of two is honest in 99 of 100 polls where a tenth are not.
POLLED = 2
# A poll's nodes hold for so long.
TRAIL_S = 30.0
TRAILS_MAX = 512
# How many of the nearest must hold a record before it is taken for the newest: others on the way
# may still hold an older one, and a liar may give one.
CONFIRMED = 2
# How many of the nearest are asked before that is given up. A mesh that has grown since the record
# was stored has others in between.
WIDE = 2 * REPLICAS
# And how many when those nearest cannot be: all liars that one of them names, and some beyond.
FAR = 4 * REPLICAS
# Contacts as they came in answers: most come again and again.
READ_MAX = 4096


class _Hunt:
    """What one walk asks for: contacts alone, or also the records that are not known yet."""

    def __init__(self, key: bytes, known: list[Signed] | None, *, closer: bool = True) -> None:
        self._key = key
        self._closer = closer
        self._salt = os.urandom(messages.SALT_BYTES)
        self._have = None if known is None else digests(known, self._salt)
        self.pages: Counter[Contact] = Counter()
        self.idle: Counter[Contact] = Counter()

    @property
    def finds(self) -> bool:
        """Whether records are looked for, and not only where they belong."""
        return self._have is not None

    def question(self) -> messages.Question:
        if self._have is None:
            return messages.FindNode(self._key)
        return messages.FindRecords(self._key, self._salt, self._have, self._closer)

    def add(self, raws: Sequence[bytes]) -> None:
        """Do not ask for these again."""
        more = b"".join(digest(raw, self._salt) for raw in raws)
        self._have = ((self._have or b"") + more)[: PROVIDERS_MAX * DIGEST_BYTES]


@dataclass
class _Trail:
    """Who was nearest to a key in the last walk, for polls until then (loop time, s)."""

    near: list[Contact]
    seen: frozenset[bytes]
    version: int
    until: float


class Walk:
    """One walk in progress: asks, takes in answers as they come, and waits with one timer."""

    def __init__(
        self, walker: Walker, protocol: Protocol, key: bytes, hunt: _Hunt, lookup: Lookup
    ) -> None:
        self.quorum = 0
        self.widens = False
        self.impatient = False
        self._walker = walker
        self._protocol = protocol
        self.key = key
        self._hunt = hunt
        self._lookup = lookup
        self._loop = asyncio.get_running_loop()
        self._held: dict[Contact, int] = {}
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = self._loop.time() + (FIND_S if hunt.finds else WALK_S)
        self._last = self._loop.time() + LONG_WALK_S

    async def done(self) -> Lookup:
        """Walk to the end, and return what was learned on the way."""
        self._step()
        try:
            await self._over
        finally:
            if self._timer is not None:
                self._timer.cancel()
        return self._lookup

    def _step(self) -> None:
        if self._over.done():
            return
        now, lookup = self._loop.time(), self._lookup
        if now >= self._deadline or self._enough(now):
            self._over.set_result(None)
            return
        for contact in lookup.ask(now):
            self._ask(contact)
        if lookup.finished(now):
            if lookup.closest < self._most():
                lookup.widen(lookup.closest + REPLICAS)
                self._step()
            else:
                self._over.set_result(None)
            return
        wake_at = min(now + lookup.wake_in(now), self._deadline)
        if self._timer is None or not now < self._timer.when() <= wake_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(wake_at, self._step)

    def _most(self) -> int:
        """Return how many of the nearest are to be asked, as it looks now."""
        if self._lookup.astray(self._protocol.router.size()):
            return FAR
        return WIDE if self.widens and not self._confirmed(REPLICAS) else REPLICAS

    def _enough(self, now: float) -> bool:
        if self.impatient:
            return self._lookup.settled(now, POLLED) or self._lookup.stuck(now)
        if not self.quorum or not self._lookup.settled(now, self.quorum):
            return False
        return self._confirmed(self.quorum)

    def _confirmed(self, count: int) -> bool:
        """Say whether CONFIRMED of the nearest that answered hold the newest that is known here."""
        newest = self._walker.newest(self.key)
        near = self._lookup.nearest(count)
        return newest > 0 and sum(self._held.get(c, 0) >= newest for c in near) >= CONFIRMED

    def _ask(self, contact: Contact) -> None:
        self._hunt.pages[contact] += 1
        future = self._protocol.ask(contact.node, contact.address, self._hunt.question())
        future.add_done_callback(partial(self._on_answer, contact))

    def _on_answer(self, contact: Contact, future: Future) -> None:
        if self._over.done():
            return
        answer = future.result()
        if answer is None:
            self._lookup.failed(contact)
        elif self._take(contact, answer[1]):
            self._ask(contact)
        self._step()

    def _take(self, contact: Contact, reply: messages.Reply) -> bool:
        """Note an answer; say whether the contact has more that is worth asking for."""
        hunt, lookup = self._hunt, self._lookup
        match reply, hunt.question():
            case messages.Contacts(contacts), messages.FindNode():
                lookup.offer(self._walker.usable(contacts))
            case (
                messages.Records(raws, left_out, contacts, holds),
                messages.FindRecords(closer=closer),
            ):
                new = self._walker.take(self.key, raws)
                hunt.add(new)
                if holds and self.quorum:
                    self._held[contact] = self._walker.newest(self.key, raws)
                if new:
                    self._deadline = min(self._loop.time() + FIND_S, self._last)
                if closer:
                    lookup.offer(self._walker.usable(contacts))
                # A page may be empty for want of room beside a certificate, or bring what another
                # brought meanwhile.
                hunt.idle[contact] = 0 if new else hunt.idle[contact] + 1
                if left_out and hunt.idle[contact] < IDLE_PAGES and hunt.pages[contact] < PAGES_MAX:
                    return True
            case _:
                lookup.failed(contact)
                return False
        lookup.answered(contact)
        return False


class Walker:
    """Walks for one node."""

    def __init__(
        self,
        mesh_id: bytes,
        own_key: bytes,
        protocol: Protocol,
        stored: RecordStore,
        found: RecordStore,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """`stored` is what this node keeps for all; `found` what its own walks brought home."""
        self._mesh_id = mesh_id
        self._own_key = own_key
        self._protocol = protocol
        self._stored = stored
        self._found = found
        self._clock = clock
        self._rng = rng
        self._trails: OrderedDict[bytes, _Trail] = OrderedDict()
        self._read: dict[bytes, Contact | None] = {}

    def known(self, key: bytes) -> list[Signed]:
        """Return the newest of each node under the key, of what is known here already."""
        now = self._clock()
        newest: dict[bytes, Signed] = {}
        for signed in (*self._stored.records(key, now), *self._found.records(key, now)):
            held = newest.get(signed.record.node)
            if held is None or signed.record.seq > held.record.seq:
                newest[signed.record.node] = signed
        return list(newest.values())

    def newest(self, key: bytes, given: Sequence[bytes] = ()) -> int:
        """Return the highest sequence known under the key, of these records where there are any."""
        found = self.known(key)
        return max((s.record.seq for s in found if not given or s.raw in given), default=0)

    async def nodes(self, key: bytes, seeds: Sequence[Contact] = ()) -> list[Contact]:
        """Return those nearest to the key that answered, nearest first.

        `seeds` are asked as well as who is in the routing table.
        """
        walk = self._walk(key, _Hunt(key, None), [*self._near(key), *seeds])
        return (await walk.done()).nearest(REPLICAS)

    async def records(self, key: bytes, *, quorum: int = 0) -> list[Signed]:
        """Return the newest of each node under the key.

        With `quorum`, for a key of one record: stop when so many of the nearest have answered and
        some of these hold the newest that is known; and look further than usual when none do.
        """
        walk = self._walk(key, _Hunt(key, self.known(key)), self._near(key))
        walk.quorum, walk.widens = quorum, quorum > 0
        lookup = await walk.done()
        if not quorum:
            self._keep_trail(key, lookup)
        return self.known(key)

    async def poll(self, key: bytes) -> list[Signed]:
        """Return the same as `records`, for a small part of its cost when asked often."""
        trail = self._trails.get(key)
        if trail is None or not self._holds(key, trail):
            return await self.records(key)
        few = self._rng.sample(trail.near, min(POLLED, len(trail.near)))
        walk = self._walk(key, _Hunt(key, self.known(key), closer=False), few)
        walk.impatient = True
        lookup = await walk.done()
        return self.known(key) if lookup.nearest() else await self.records(key)

    # -- polls

    def _keep_trail(self, key: bytes, lookup: Lookup) -> None:
        near = lookup.nearest(REPLICAS)
        self._trails.pop(key, None)
        if near:
            until = asyncio.get_running_loop().time() + TRAIL_S * self._rng.uniform(0.8, 1.2)
            self._trails[key] = _Trail(near, lookup.seen(), self._protocol.router.version, until)
        if len(self._trails) > TRAILS_MAX:
            self._trails.popitem(last=False)

    def _holds(self, key: bytes, trail: _Trail) -> bool:
        """Say whether those nearest then are so still, as far as the routing table knows."""
        if asyncio.get_running_loop().time() >= trail.until:
            return False
        version = self._protocol.router.version
        if trail.version != version:
            nearest = self._protocol.router.nearest(key, len(trail.near))
            if any(contact.id not in trail.seen for contact in nearest):
                return False
            trail.version = version
        return True

    # -- walks

    def _near(self, key: bytes) -> list[Contact]:
        def alive(contact: Contact) -> bool:
            return not self._protocol.is_dead(contact)

        return self._protocol.router.nearest(key, messages.CONTACTS_MAX, alive)

    def _walk(self, key: bytes, hunt: _Hunt, contacts: Sequence[Contact]) -> Walk:
        lookup = Lookup(key, self._own_key, self._protocol.slow_s)
        lookup.offer(contacts, known=True)
        return Walk(self, self._protocol, key, hunt, lookup)

    def take(self, key: bytes, raws: Sequence[bytes]) -> list[bytes]:
        """Keep records that a walk was given; return those that are new."""
        now = self._clock()
        return [raw for raw in raws if self._found.put(key, raw, now).new]

    def usable(self, packed: Sequence[bytes]) -> list[Contact]:
        """Return the contacts of an answer, at the addresses that we have proved where we have."""
        known_as, is_dead = self._protocol.router.known_as, self._protocol.is_dead
        found = (known_as(contact) for contact in map(self._contact, packed) if contact is not None)
        return [contact for contact in found if not is_dead(contact)]

    def _contact(self, packed: bytes) -> Contact | None:
        if packed in self._read:
            return self._read[packed]
        if len(self._read) >= READ_MAX:
            self._read.clear()
        contact = self._read[packed] = Contact.unpack(self._mesh_id, packed)
        return contact
