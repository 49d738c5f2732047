"""How a node comes into the mesh, or back into it. Used by `node.py` and `upkeep.py`.

Whoever is remembered is greeted first, then the addresses that were given, whose names are resolved
anew each time; a few at a time, until a few have answered. Then it is found out whether this node
is reached from outside, since only those who are ask to be put in routing tables; and then it walks
towards its own key, which makes it known to its neighbours.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.endpoints import resolve
from agent.discovery.messages import Promise
from agent.discovery.protocol import Address, Protocol
from agent.discovery.reach import PROBE_S, TESTERS, scope_of
from agent.discovery.walk import Walker
from agent.identity.keys import NodeId

# Greeted at one time, and how many answers are enough to go on with: where a tenth of the members
# mean harm, one newcomer in a million has met nobody else.
BATCH = 16
ENOUGH = 6
# A batch is given this long before the next is greeted beside it: a far round trip.
BATCH_S = 0.3
# Addresses that one try greets at most, after those who are remembered; the next takes others.
ENDPOINTS_MAX = 64
# The last batch's end: a name that is slow to resolve, and a question's second.
LAST_S = 4.0
ADDRESSES_PER_NAME = 4
# Contacts that are told at once that this node serves no more; the others see it in our questions.
TOLD_MAX = 64
# How long a start waits for the verdict whether this node is reached; it comes within two round
# trips, and a node that is not reached goes on as a client meanwhile.
VERDICT_S = 0.4


class Rejoin:
    """Finds the mesh for one node."""

    def __init__(
        self,
        mesh_id: bytes,
        own_key: bytes,
        protocol: Protocol,
        walker: Walker,
        rng: random.Random,
    ) -> None:
        self._mesh_id = mesh_id
        self._own_key = own_key
        self._protocol = protocol
        self._walker = walker
        self._rng = rng
        self._test: asyncio.Task[None] | None = None

    def close(self) -> None:
        """End what runs."""
        if self._test is not None:
            self._test.cancel()

    async def join(self, remembered: Sequence[Contact], endpoints: Sequence[str]) -> int:
        """Greet, be tested, and be known; return how many answered. It never raises."""
        answered: dict[Address, Contact] = {}
        tasks: set[asyncio.Task[None]] = set()
        some = self._rng.sample(endpoints, min(ENDPOINTS_MAX, len(endpoints)))
        batches = [*_batches(remembered), *_batches(some)]
        try:
            for batch in batches:
                tasks |= {asyncio.create_task(self._greet(one, answered)) for one in batch}
                last = batch is batches[-1]
                _, tasks = await asyncio.wait(tasks, timeout=LAST_S if last else BATCH_S)
                if len(answered) >= ENOUGH:
                    break
        finally:
            for task in tasks:
                task.cancel()
        if answered:
            await self._settle(list(answered.values()))
        return len(answered)

    async def look_around(self, remembered: Sequence[Contact], endpoints: Sequence[str]) -> None:
        """Greet one of those who are not in the table: two halves of a mesh grow together again."""
        known = {contact.id for contact in self._protocol.router.contacts()}
        others: list[Contact | str] = [c for c in remembered if c.id not in known]
        others += endpoints
        if others:
            answered: dict[Address, Contact] = {}
            await self._greet(self._rng.choice(others), answered)
            if any(contact.id not in known for contact in answered.values()):
                await self._walker.nodes(self._own_key, list(answered.values()))

    def start_test(self) -> asyncio.Task[None] | None:
        """Begin to find out whether this node is reached from outside, where a test is due."""
        if self._test is None or self._test.done():
            if not self._protocol.reach.any_due(asyncio.get_running_loop().time()):
                return None
            self._test = asyncio.create_task(self._test_reach(), name="discovery-reach")
        return self._test

    async def _test_reach(self) -> None:
        protocol, loop = self._protocol, asyncio.get_running_loop()
        known = [*protocol.router.contacts(), *protocol.lately.values()]
        known = [contact for contact in known if not protocol.is_dead(contact)]
        host = protocol.reach.due([contact.ip for contact in known], loop.time())
        if host is None:
            return
        near = [contact for contact in known if contact.scope == scope_of(host)]
        testers = self._rng.sample(near, min(TESTERS, len(near)))
        probe = self._rng.randbytes(messages.ID_BYTES)
        protocol.reach.begin(host, probe, len(testers))

        async def ask(tester: Contact) -> bool:
            answer = await protocol.ask(tester.node, tester.address, messages.TestMe(probe))
            given = answer is not None and answer[1] == Promise(True)
            protocol.promised(host, given=given)
            return given

        if not any(await asyncio.gather(*map(ask, testers))):
            protocol.conclude(host)
        try:
            async with asyncio.timeout(PROBE_S):
                while protocol.reach.testing(host):
                    protocol.probed.clear()
                    await protocol.probed.wait()
        except TimeoutError:
            protocol.conclude(host)

    async def tell_reach(self) -> None:
        """Let the others know that what they were told of us is no longer so."""
        if self._protocol.reach.reachable:
            lately = [c for c in self._protocol.lately.values() if not self._protocol.is_dead(c)]
            await self._walker.nodes(self._own_key, lately)
            return
        contacts = self._protocol.router.contacts()
        await self._tell(self._rng.sample(contacts, min(TOLD_MAX, len(contacts))))

    async def _tell(self, contacts: Sequence[Contact]) -> None:
        """Every question says whether we serve."""
        await asyncio.gather(
            *(self._protocol.ask(c.node, c.address, messages.Ping()) for c in contacts)
        )

    async def _settle(self, answered: list[Contact]) -> None:
        test = self.start_test()
        if test is not None:
            await asyncio.wait([test], timeout=VERDICT_S)
            if test.done():
                self._protocol.reach_changed.clear()
                await self._tell(answered)
        await self._walker.nodes(self._own_key, answered)

    async def _greet(self, whom: Contact | str, answered: dict[Address, Contact]) -> None:
        places: list[tuple[NodeId | None, Address]]
        if isinstance(whom, Contact):
            places = [(whom.node, whom.address)]
        else:
            places = [(None, address) for address in (await resolve([whom]))[:ADDRESSES_PER_NAME]]

        async def greet(node: NodeId | None, address: Address) -> None:
            answer = await self._protocol.ask(node, address, messages.Ping())
            if answer is not None:
                answered[address] = Contact(self._mesh_id, answer[0], *address)

        new = [(node, address) for node, address in places if address not in answered]
        await asyncio.gather(*(greet(node, address) for node, address in new))


def _batches(whom: Sequence[Contact | str]) -> list[Sequence[Contact | str]]:
    return [whom[at : at + BATCH] for at in range(0, len(whom), BATCH)]
