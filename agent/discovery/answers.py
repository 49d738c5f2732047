"""What a node answers to a member's questions. Used by `protocol.py`, which opens and sends.

Everything here is bounded: an answer fits one datagram, a probe is sent for few and is smaller than
what asked for it, and contacts that the asker cannot reach (another site's LAN) are not offered.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from agent.discovery import messages
from agent.discovery.allowance import Allowance
from agent.discovery.contact import Contact
from agent.discovery.dhtkeys import node_key
from agent.discovery.messages import CONTACTS_MAX, Promise
from agent.discovery.questions import Future
from agent.discovery.reach import of_use, scope_of
from agent.discovery.routing import Table
from agent.discovery.store import PROVIDERS_MAX, RecordStore
from agent.identity.keys import NodeId

# Tests that are arranged, and probes that are sent, for all askers together: a thousand nodes that
# start in the same minute are served, and a member that means harm gets 16 small datagrams a
# second.
TESTS_PER_S, TESTS_BURST = 16.0, 64.0

Address = tuple[str, int]
Ask = Callable[[NodeId, Address, messages.Question], Future]
Knock = Callable[[bytes, NodeId, Address], None]


class Answers:
    """Answers for one node."""

    def __init__(
        self,
        mesh_id: bytes,
        store: RecordStore,
        router: Table,
        clock: Callable[[], float],
        rng: random.Random,
        ask: Ask,
        knock: Knock,
    ) -> None:
        """`ask` asks another; `knock` sends a probe (id, node, address) from a fresh port."""
        self._mesh_id = mesh_id
        self._store = store
        self._router = router
        self._clock = clock
        self._rng = rng
        self._ask = ask
        self._knock = knock
        self._tests = Allowance(TESTS_PER_S, TESTS_BURST)
        self._knocks = Allowance(TESTS_PER_S, TESTS_BURST)

    def reply(
        self, sender: NodeId, address: Address, question: messages.Question, room: int
    ) -> messages.Reply:
        """Return the answer to a member's question from `address`, at most `room` bytes."""
        match question:
            case messages.Ping():
                return messages.Pong(messages.pack_address(*address))
            case messages.FindNode(key):
                return messages.Contacts(self._near(key, sender, address, room))
            case messages.FindRecords(key, salt, have, closer):
                records, left_out, held = self._store.missing(
                    key, salt, have, room, self._clock(), self._rng
                )
                room -= sum(len(raw) + 3 for raw in records)
                contacts = self._near(key, sender, address, room) if closer else ()
                left_out = min(left_out, PROVIDERS_MAX)
                return messages.Records(tuple(records), left_out, contacts, held > 0)
            case messages.Store(key, record):
                put = self._store.put(key, record, self._clock())
                return messages.Stored(put.accepted, put.held_seq)
            case messages.TestMe(probe):
                return Promise(self._arrange_test(sender, address, probe))
            case messages.Knock(node, packed, probe):
                return Promise(self._knock_for(NodeId(node), packed, probe))

    def _near(self, key: bytes, sender: NodeId, address: Address, room: int) -> tuple[bytes, ...]:
        scope = scope_of(address[0])

        asker = node_key(self._mesh_id, sender)

        def fit(contact: Contact) -> bool:
            return contact.id != asker and of_use(contact.scope, scope)

        chosen = []
        for contact in self._router.nearest(key, CONTACTS_MAX, fit):
            room -= len(contact.packed) + 2
            if room < 0:
                break
            chosen.append(contact.packed)
        return tuple(chosen)

    def _arrange_test(self, sender: NodeId, address: Address, probe: bytes) -> bool:
        """Have another member send the asker a probe where it was seen; else send it ourselves."""
        if not self._tests.take(asyncio.get_running_loop().time()):
            return False
        scope = scope_of(address[0])
        others = [
            c
            for c in self._router.contacts()
            if c.node != sender and c.scope == scope and c.address != address
        ]
        if not others:
            self._knock(probe, sender, address)
            return True
        other = self._rng.choice(others)

        def otherwise(asked: Future) -> None:
            answer = asked.result()
            if answer is None or answer[1] != Promise(True):
                self._knock(probe, sender, address)

        question = messages.Knock(sender.ed25519, messages.pack_address(*address), probe)
        self._ask(other.node, other.address, question).add_done_callback(otherwise)
        return True

    def _knock_for(self, node: NodeId, packed: bytes, probe: bytes) -> bool:
        address = messages.unpack_address(packed)
        if address is None or not self._knocks.take(asyncio.get_running_loop().time()):
            return False
        self._knock(probe, node, address)
        return True
