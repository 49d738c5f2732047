"""What this node says of itself: signs it, stores it at the nearest nodes, repeats it in time.

Used by `node.py`. Nobody repeats another's records, so what its node no longer says dies out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from kademlia.node import Node

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.lookup import REPLICAS
from agent.discovery.protocol import Protocol
from agent.discovery.record import Record, Signed, sign
from agent.discovery.seal import CLOCK_SKEW_S
from agent.discovery.store import RecordStore
from agent.discovery.walk import Walker
from agent.identity.keys import NodeKey

log = logging.getLogger(__name__)


@dataclass
class Publication:
    """What this node says until it takes it back. `make` gets sequence (ms) and expiry (unix s).

    `due` is the loop time (s) of the next repeat; `last_expiry` the latest of all that was said by
    this name; the rest is what was last said.
    """

    make: Callable[[int, int], Record]
    ttl_s: float
    due: float = 0.0
    seq: int = 0
    last_expiry: int = 0
    signed: Signed | None = None


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
        return await self._publish(publication)

    async def end(self, name: str, make: Callable[[int, int], Record]) -> None:
        """Publish a last word (it lives at least as long as those before) and say no more."""
        previous = self._publications.pop(name, None)
        if previous is None:
            return

        def last(seq: int, expiry: int) -> Record:
            return make(seq, max(expiry, previous.last_expiry))

        await self._publish(Publication(last, previous.ttl_s, seq=previous.seq))

    async def repeat_due(self) -> None:
        """Publish again what is due, one after another."""
        for publication in list(self._publications.values()):
            if publication.due <= asyncio.get_running_loop().time():
                await self._publish(publication)

    def offer(self, contact: Contact) -> None:
        """Give a newcomer the records of ours that it should store; does not wait."""
        for publication in self._publications.values():
            signed = publication.signed
            if signed is None:
                continue
            if contact in self._protocol.router.find_neighbors(Node(signed.key), REPLICAS):
                question = messages.Store(signed.key, signed.raw)
                self._protocol.ask(contact.node, contact.address, question)

    async def _publish(self, publication: Publication) -> int:
        """Sign anew and store at the nearest nodes and here; return how many keep it.

        A node that holds a newer word of ours (our clock was set back) tells its sequence, and we
        go one beyond it, once; how far is bounded, so that a lie cannot use up the numbers.
        """
        publication.due = asyncio.get_running_loop().time() + publication.ttl_s / 3
        kept = 0
        for _ in range(2):
            now = self._clock()
            publication.seq = max(publication.seq + 1, int(now * 1000))
            expiry = int(now + publication.ttl_s) + 1
            publication.last_expiry = max(publication.last_expiry, expiry)
            record = publication.make(publication.seq, expiry)
            signed = publication.signed = sign(self._key, self._mesh_id, record)
            here = self._stored.put(signed.key, signed.raw, now)
            there = await self._store(signed)
            kept = here.accepted + sum(reply.accepted for reply in there)
            newest = max((here.held_seq, *(reply.held_seq for reply in there)))
            if newest <= publication.seq:
                break
            publication.seq = min(newest, int((now + CLOCK_SKEW_S) * 1000))
        if not kept:
            log.warning("discovery.publish_refused key=%s", signed.key.hex())
        return kept

    async def _store(self, signed: Signed) -> list[messages.Stored]:
        question = messages.Store(signed.key, signed.raw)
        nearest = await self._walker.nodes(signed.key)
        answers = await asyncio.gather(
            *(self._protocol.ask(c.node, c.address, question) for c in nearest)
        )
        replies = [answer[1] for answer in answers if answer is not None]
        return [reply for reply in replies if isinstance(reply, messages.Stored)]
