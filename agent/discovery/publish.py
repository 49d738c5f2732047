"""What this node says of itself: signs it, stores it at the nearest nodes, repeats it in time.

Used by `node.py`. Nobody repeats another's records, so what its node no longer says dies out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.lookup import REPLICAS
from agent.discovery.protocol import Protocol
from agent.discovery.record import MemberRecord, Record, Signed, sign
from agent.discovery.seal import CLOCK_SKEW_S
from agent.discovery.store import RecordStore
from agent.discovery.walk import Walker
from agent.identity.keys import NodeKey

log = logging.getLogger(__name__)

# When the mesh has grown so much since a record was stored, a third of those nearest to it came
# later. Not looked at again for a while, since a mesh may grow fast at its start.
GROWN, GROWN_S = 1.5, 20.0
# A higher sequence is believed when so many nodes hold one: two liars alone cannot make us repeat.
BELIEVED = 3


@dataclass
class Publication:
    """What this node says until it takes it back. `make` gets sequence (ms) and expiry (unix s).

    `due` is the loop time (s) of the next repeat; `last_expiry` the latest of all that was said by
    this name; `said_at` the loop time of the last, when the mesh had this `size`; `stands` where it
    was stored; the rest is what was said.
    """

    make: Callable[[int, int], Record]
    ttl_s: float
    due: float = 0.0
    said_at: float = 0.0
    size: float = 0.0
    seq: int = 0
    last_expiry: int = 0
    signed: Signed | None = None
    stands: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class _Kept:
    """What became of a record at one key: here and at the nearest nodes."""

    here: bool
    there: int
    asked: int
    newest: int

    @property
    def has_room(self) -> bool:
        """Whether the set has a place for us: most of those who keep it say so."""
        return 2 * self.there >= self.asked if self.asked else self.here


class Publisher:
    """Publishes for one node."""

    def __init__(
        self,
        key: NodeKey,
        mesh_id: bytes,
        protocol: Protocol,
        walker: Walker,
        stored: RecordStore,
        clock: Callable[[], float],
    ) -> None:
        self._key = key
        self._mesh_id = mesh_id
        self._protocol = protocol
        self._walker = walker
        self._stored = stored
        self._clock = clock
        self._publications: dict[str, Publication] = {}

    async def begin(self, name: str, make: Callable[[int, int], Record], ttl_s: float) -> int:
        """Publish now and until `end`; return how many nodes keep it, this one included.

        Raises ValueError when the record breaks a limit. A second call by the same name replaces.
        """
        sign(self._key, self._mesh_id, make(0, 0))  # raises before anything is kept
        previous = self._publications.get(name)
        publication = Publication(make, ttl_s)
        if previous is not None:
            publication.seq, publication.last_expiry = previous.seq, previous.last_expiry
        self._publications[name] = publication
        return await self._publish(publication, news=True)

    async def end(self, name: str, make: Callable[[int, int], Record]) -> None:
        """Publish a last word (it lives at least as long as those before) and say no more."""
        previous = self._publications.pop(name, None)
        if previous is None:
            return

        def last(seq: int, expiry: int) -> Record:
            return make(seq, max(expiry, previous.last_expiry))

        await self._publish(Publication(last, previous.ttl_s, seq=previous.seq))

    def said(self, name: str) -> bytes | None:
        """Return the record last published by this name, as it is on the wire."""
        publication = self._publications.get(name)
        return None if publication is None or publication.signed is None else publication.signed.raw

    def repeat_soon(self) -> None:
        """Publish everything again at the next `repeat_due`: something in it has changed."""
        for publication in self._publications.values():
            publication.due = 0.0

    async def repeat_due(self) -> None:
        """Publish again what is due, one after another; and early when the mesh has grown much.

        The nearest to a key are others then, and whoever looks asks these.
        """
        for publication in list(self._publications.values()):
            now = asyncio.get_running_loop().time()
            grown = self._protocol.router.size() > GROWN * publication.size
            if publication.due <= now or (grown and now > publication.said_at + GROWN_S):
                await self._publish(publication)

    def offer(self, contact: Contact) -> None:
        """Give a newcomer the records of ours that it should store; does not wait."""
        for publication in self._publications.values():
            signed = publication.signed
            if signed is None:
                continue
            for key in publication.stands:
                if contact in self._protocol.router.nearest(key, REPLICAS):
                    question = messages.Store(key, signed.raw)
                    self._protocol.ask(contact.node, contact.address, question)

    async def _publish(self, publication: Publication, *, news: bool = False) -> int:
        """Sign anew and store at the nearest nodes and here; return how many keep it.

        A node that holds a newer word of ours (our clock was set back) tells its sequence, and we
        go one beyond it, once; how far is bounded, so that a lie cannot use up the numbers.
        """
        publication.said_at = asyncio.get_running_loop().time()
        publication.due = publication.said_at + publication.ttl_s / 3
        publication.size = max(self._protocol.router.size(), REPLICAS)
        kept, nearest = _Kept(False, 0, 0, 0), list[Contact]()
        for _ in range(2):
            now = self._clock()
            publication.seq = max(publication.seq + 1, int(now * 1000))
            expiry = int(now + publication.ttl_s) + 1
            publication.last_expiry = max(publication.last_expiry, expiry)
            record = publication.make(publication.seq, expiry)
            signed = publication.signed = sign(self._key, self._mesh_id, record)
            publication.stands = (signed.key,)
            nearest = nearest or await self._walker.nodes(signed.key)
            kept = await self._store(signed, signed.key, nearest)
            if kept.newest <= publication.seq:
                break
            publication.seq = min(kept.newest, int((now + CLOCK_SKEW_S) * 1000))
        if isinstance(signed.record, MemberRecord):
            await self._list(publication, signed, news=news)
        if not kept.here + kept.there:
            log.warning("discovery.publish_refused key=%s", signed.key.hex())
        return kept.here + kept.there

    async def _list(self, publication: Publication, signed: Signed, *, news: bool) -> None:
        """Store a member record in the listing: in the root, and in a set below that has room.

        Who is new and finds the root full stands in the news as well, which others ask for often.
        """
        own, root, *below, recent = signed.keys
        publication.stands = (own, root)
        if not (await self._store(signed, root, await self._walker.nodes(root))).has_room:
            publication.stands = (own,)
            if news:
                await self._store(signed, recent, await self._walker.nodes(recent))
        for key in below:
            if (await self._store(signed, key, await self._walker.nodes(key))).has_room:
                publication.stands += (key,)
                return
        log.warning("discovery.listing_full node=%s", self._key.id)

    async def _store(self, signed: Signed, key: bytes, nearest: Sequence[Contact]) -> _Kept:
        here = self._stored.put(key, signed.raw, self._clock())
        question = messages.Store(key, signed.raw)
        answers = await asyncio.gather(
            *(self._protocol.ask(c.node, c.address, question) for c in nearest)
        )
        replies = list(_stored(answer[1] for answer in answers if answer is not None))
        held = sorted((reply.held_seq for reply in replies), reverse=True)
        newest = max([here.held_seq, *held[:BELIEVED][-1:]])
        there = sum(reply.accepted for reply in replies)
        return _Kept(here.accepted, there, len(replies), newest)


def _stored(replies: Iterable[messages.Reply]) -> Iterable[messages.Stored]:
    return (reply for reply in replies if isinstance(reply, messages.Stored))
