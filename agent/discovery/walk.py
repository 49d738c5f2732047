"""The walk towards a key: drives a `Lookup` over the protocol and keeps what it finds.

Used by `node.py` and `publish.py`. A walk takes at most WALK_S, and nothing that others answer, or
do not, makes it raise.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Sequence

from kademlia.node import Node

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.lookup import Lookup
from agent.discovery.protocol import Protocol
from agent.discovery.record import Signed
from agent.discovery.store import DIGEST_BYTES, PROVIDERS_MAX, RecordStore, digest, digests
from agent.identity.keys import NodeId

# A walk's end whatever happens: two rounds of timeouts and some.
WALK_S = 2.0
# Pages of a provider set that one node may give in one walk: 256 records at two a datagram.
PAGES_MAX = 128

_Answers = asyncio.Queue[tuple[Contact, messages.Reply | None]]


class _Hunt:
    """What one walk asks for: contacts alone, or also the records that are not known yet."""

    def __init__(self, key: bytes, known: list[Signed] | None) -> None:
        self._key = key
        self._salt = os.urandom(messages.SALT_BYTES)
        self._have = None if known is None else digests(known, self._salt)
        self.pages: Counter[Contact] = Counter()

    def question(self) -> messages.Question:
        if self._have is None:
            return messages.FindNode(self._key)
        return messages.FindRecords(self._key, self._salt, self._have)

    def add(self, raws: Sequence[bytes]) -> None:
        """Do not ask for these again."""
        more = b"".join(digest(raw, self._salt) for raw in raws)
        self._have = ((self._have or b"") + more)[: PROVIDERS_MAX * DIGEST_BYTES]


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
    ) -> None:
        """`stored` is what this node keeps for all; `found` what its own walks brought home."""
        self._mesh_id = mesh_id
        self._own_key = own_key
        self._protocol = protocol
        self._stored = stored
        self._found = found
        self._clock = clock

    def known(self, key: bytes) -> list[Signed]:
        """Return the newest of each node under the key, of what is known here already."""
        now = self._clock()
        newest: dict[bytes, Signed] = {}
        for signed in (*self._stored.records(key, now), *self._found.records(key, now)):
            held = newest.get(signed.record.node)
            if held is None or signed.record.seq > held.record.seq:
                newest[signed.record.node] = signed
        return list(newest.values())

    async def nodes(self, key: bytes) -> list[Contact]:
        """Return those nearest to the key that answered, nearest first."""
        return (await self._walk(key, _Hunt(key, None), 0)).nearest()

    async def records(self, key: bytes, *, quorum: int = 0) -> list[Signed]:
        """Return the newest of each node under the key.

        With `quorum`, stop when so many of the nearest have answered and something is known.
        """
        await self._walk(key, _Hunt(key, self.known(key)), quorum)
        return self.known(key)

    async def _walk(self, key: bytes, hunt: _Hunt, quorum: int) -> Lookup:
        loop = asyncio.get_running_loop()
        lookup = Lookup(key, self._own_key, self._protocol.slow_s)
        near = self._protocol.router.find_neighbors(Node(key), messages.CONTACTS_MAX)
        lookup.offer(c for c in near if not self._protocol.is_dead(c))
        answers: _Answers = asyncio.Queue()
        deadline = loop.time() + WALK_S
        while True:
            now = loop.time()
            for contact in lookup.ask(now):
                self._ask(hunt, contact, answers)
            enough = quorum and lookup.settled(now, quorum) and self.known(key)
            if enough or now >= deadline or lookup.finished(now):
                return lookup
            try:
                async with asyncio.timeout(min(lookup.wake_in(now), deadline - now)):
                    contact, reply = await answers.get()
            except TimeoutError:
                continue
            if self._take(key, hunt, lookup, contact, reply):
                self._ask(hunt, contact, answers)

    def _ask(self, hunt: _Hunt, contact: Contact, answers: _Answers) -> None:
        def done(future: asyncio.Future[tuple[NodeId, messages.Reply] | None]) -> None:
            result = future.result()
            answers.put_nowait((contact, result[1] if result else None))

        hunt.pages[contact] += 1
        future = self._protocol.ask(contact.node, contact.address, hunt.question())
        future.add_done_callback(done)

    def _take(
        self,
        key: bytes,
        hunt: _Hunt,
        lookup: Lookup,
        contact: Contact,
        reply: messages.Reply | None,
    ) -> bool:
        """Note an answer; say whether the contact has more that is worth asking for."""
        match reply, hunt.question():
            case messages.Contacts(contacts), messages.FindNode():
                lookup.offer(self._usable(contacts))
            case messages.Records(raws, left_out, contacts), messages.FindRecords():
                now = self._clock()
                new = [raw for raw in raws if self._found.put(key, raw, now).accepted]
                hunt.add(new)
                lookup.offer(self._usable(contacts))
                # The first page may be empty for want of room beside a certificate.
                pages = hunt.pages[contact]
                if left_out and (new or pages == 1) and pages < PAGES_MAX:
                    return True
            case _:
                lookup.failed(contact)
                return False
        lookup.answered(contact)
        return False

    def _usable(self, packed: Sequence[bytes]) -> list[Contact]:
        """Return the contacts of an answer, at the addresses that we have proved where we have."""
        usable = []
        for one in packed:
            contact = Contact.unpack(self._mesh_id, one)
            if contact is not None:
                contact = self._protocol.router.get(contact.id) or contact
                if not self._protocol.is_dead(contact):
                    usable.append(contact)
        return usable
