"""Discovery: the mesh's members and services, found and published over the DHT.

The daemon uses it; it knows nothing of tickets, WireGuard or models. What it returns is verified:
the node signed it, its certificate stands now, it has not expired, and it is the newest found.

Nothing here raises for what others do or fail to do: a lookup ends 2.5 s after its last find at
most and returns what was found. A mesh of one finds its own records. Only the publisher repeats its
records, at a third of their lives, and at once to a newcomer that should store them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from agent.discovery import messages, saved
from agent.discovery.contact import Contact
from agent.discovery.dhtkeys import member_key, news_key, node_key, service_key
from agent.discovery.listing import Listing
from agent.discovery.port import Ports, SystemPorts
from agent.discovery.protocol import Address, Protocol
from agent.discovery.publish import Publisher
from agent.discovery.reach import Reach
from agent.discovery.record import (
    TTL_MAX_S,
    IsMember,
    MemberRecord,
    Record,
    ServiceRecord,
    Verifier,
    VerifyCertificate,
)
from agent.discovery.rejoin import Rejoin
from agent.discovery.seal import Seal
from agent.discovery.store import FOUND_MAX, FOUND_SETS, RecordStore
from agent.discovery.told import OnMember, Told
from agent.discovery.upkeep import REMEMBERED_MAX, Memory, Upkeep
from agent.discovery.walk import Walker
from agent.discovery.ways import Ways
from agent.errors import NotRunning
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

log = logging.getLogger(__name__)

# A member record is believed for this long after its node's last word.
MEMBER_TTL_S = 900.0
TTL_MIN_S = 10.0
# A single record is found when this many of the nearest have answered: enough that three which
# withhold it, or give an old one, change nothing.
QUORUM = 4
STOP_S = 1.0
PING_TIMEOUT_S = 1.0

_MEMBER = "member"


@dataclass(frozen=True)
class _Parts:
    """What exists between `start` and `stop`."""

    protocol: Protocol
    walker: Walker
    listing: Listing
    publisher: Publisher
    rejoin: Rejoin
    maintenance: asyncio.Task[None]


class Discovery:
    """One node's part in the DHT. All methods belong to the event loop that `start` ran in."""

    def __init__(
        self,
        key: NodeKey,
        mesh_id: bytes,
        network_keys: NetworkKeys,
        verify_certificate: VerifyCertificate,
        listen: Address,
        certificate: bytes,
        *,
        reachable: bool | None = None,
        is_member: IsMember | None = None,
        on_member: OnMember | None = None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        ports: Ports | None = None,
        heard: Callable[[NodeId], None] = lambda node: None,
        ways: Ways | None = None,
    ) -> None:
        """Prepare; nothing is opened before `start`.

        `certificate` is the node's own, encoded: it is shown to others, who answer members only.
        `listen` is (IP address, UDP port); port 0 takes a free one, "::" serves IPv4 too.
        `reachable` None: found out by tests; False: others answer us but do not come to us with
        their questions; True: they do, whatever tests would say.
        `is_member` makes it cheap to look again whether a verified certificate still stands.
        `on_member` is told of each other member's record that is new here, or says something new,
        however it came; it is called in the event loop and must not block. So is `heard`, which
        is told who asked or answered something.
        """
        self._key = key
        self._mesh_id = mesh_id
        self._listen = listen
        self._certificate = certificate
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._ports = ports or SystemPorts()
        self._seal = Seal(key, mesh_id, network_keys)
        self._verifier = Verifier(mesh_id, verify_certificate, is_member)
        self._own_key = node_key(mesh_id, key.id)
        self._told = Told(key.id, self._verifier, on_member)
        self._store = RecordStore(self._verifier, self._told.heard)
        self._found = RecordStore(
            self._verifier, self._told.heard, sets=FOUND_SETS, records_max=FOUND_MAX
        )
        self._fixed_reach = reachable
        self._heard = heard
        self._ways = ways or Ways()
        self._reach = Reach(reachable)
        self._memory = Memory([], [])
        self._parts: _Parts | None = None

    @property
    def port(self) -> int:
        """The UDP port that is open; NotRunning before `start`."""
        port: int = self._running().protocol.transport.get_extra_info("sockname")[1]
        return port

    @property
    def reachable(self) -> bool:
        """Whether this node serves others: it was reached from outside, or nobody could try yet."""
        return self._reach.reachable

    @property
    def counters(self) -> Mapping[str, int]:
        """What was sent, asked and refused since `start`, by name."""
        return dict(self._parts.protocol.counters) if self._parts else {}

    def contacts(self) -> list[tuple[NodeId, Address]]:
        """Return the routing table: nodes that answered lately, with the address that did."""
        return [(c.node, c.address) for c in self._running().protocol.router.contacts()]

    # -- life

    async def start(self) -> None:
        """Open the port and begin to serve. Raises EnvironmentFault when it cannot be opened."""
        if self._parts is not None:
            return
        self._reach = Reach(self._fixed_reach)
        made: list[Protocol] = []

        def make() -> Protocol:
            made.append(self._make_protocol())
            return made[0]

        await self._ports.open(make, *self._listen)
        protocol, mesh_id, clock = made[0], self._mesh_id, self._clock
        walker = Walker(
            mesh_id, self._own_key, protocol, self._store, self._found, clock, self._rng
        )
        publisher = Publisher(self._key, mesh_id, protocol, walker, self._store, clock)
        rejoin = Rejoin(mesh_id, self._own_key, protocol, walker, self._rng)
        upkeep = Upkeep(
            self._own_key, protocol, walker, publisher, rejoin, self._memory, self._rng, self._purge
        )
        maintenance = asyncio.get_running_loop().create_task(upkeep.run(), name="discovery")
        listing = Listing(mesh_id, walker, clock)
        self._parts = _Parts(protocol, walker, listing, publisher, rejoin, maintenance)
        log.info("discovery.started port=%d node=%s", self.port, self._key.id)

    async def stop(self) -> None:
        """Say goodbye, close the port and end the task; safe to call twice.

        What was published runs out by itself; `withdraw` before takes it back at once.
        """
        parts, self._parts = self._parts, None
        if parts is None:
            return
        self._memory.remember(parts.protocol.router.contacts())
        parts.maintenance.cancel()
        parts.rejoin.close()
        await asyncio.wait([parts.maintenance], timeout=STOP_S)
        parts.protocol.goodbye()
        parts.protocol.transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await parts.protocol.closed.wait()
        log.info("discovery.stopped")

    async def bootstrap(self, endpoints: Sequence[str]) -> int:
        """Come into the mesh by the contacts remembered by `load`, then by "HOST:PORT"s.

        Returns how many answered; a few are enough, and no more are greeted then. Names are
        resolved at each call. The endpoints are kept: while nobody is known, all are tried again
        and again. What is no endpoint is logged and passed over.
        """
        memory, rejoin = self._memory, self._running().rejoin
        kept = dict.fromkeys([*endpoints, *memory.endpoints])
        memory.endpoints = list(kept)[:REMEMBERED_MAX]
        answered = await rejoin.join(memory.contacts, endpoints)
        log.info("discovery.bootstrapped answered=%d", answered)
        return answered

    def save(self) -> bytes:
        """Return what a restart needs to come back without its bootstraps; holds no secret."""
        if self._parts is not None:
            self._memory.remember(self._parts.protocol.router.contacts())
        return saved.dump(self._memory.contacts, self._memory.endpoints)

    def load(self, state: bytes) -> None:
        """Remember what `save` gave, for `bootstrap`. Raises StateError when it is damaged."""
        contacts, endpoints = saved.parse(self._mesh_id, state)
        self._memory.contacts = contacts[:REMEMBERED_MAX]
        self._memory.endpoints = endpoints[:REMEMBERED_MAX]

    # -- what changes while it runs

    def set_network_keys(self, keys: NetworkKeys) -> None:
        """Accept datagrams under these keys alone from now on, and send under `keys.sending`.

        An answer to a member that is late goes under the key it used. Raises ValueError for more
        than four keys.
        """
        self._seal.set_network_keys(keys)

    def set_certificate(self, certificate: bytes) -> None:
        """Use this node's new certificate: shown to all again, in all records within a second."""
        if certificate == self._certificate:
            return
        self._certificate = certificate
        if self._parts is not None:
            self._parts.protocol.roster.set_certificate(certificate)
            self._parts.publisher.repeat_soon()

    def recheck(self) -> None:
        """Put out at once whoever is no member any more: contacts, questions, records.

        To be called when a member was revoked, left or expired; without it that takes some 2 s
        for those who ask, and a poll for those who are read.
        """
        self._verifier.recheck()
        if self._parts is not None:
            self._parts.protocol.recheck()
        self._purge()
        if self._parts is not None:
            self._parts.listing.forget()

    def addresses_changed(self) -> None:
        """Find out anew whether this node is reached: the machine has other addresses."""
        self._reach.changed(asyncio.get_running_loop().time())

    # -- what this node says

    async def publish_member(self, record: MemberRecord) -> int:
        """Publish where this node can be reached, now and until `stop`; return how many keep it.

        Sequence and expiry are set here, and later the certificate when it is replaced. The
        record's certificate is also the one shown to others from now on. The node is then found
        by its id, and listed among the members. Raises ValueError when the record is too large.
        """
        parts = self._running()
        self._certificate = record.certificate
        parts.protocol.roster.set_certificate(record.certificate)

        def member(seq: int, expiry: int) -> Record:
            certificate = self._certificate
            return msgspec.structs.replace(record, certificate=certificate, seq=seq, expiry=expiry)

        return await parts.publisher.begin(_MEMBER, member, MEMBER_TTL_S)

    def own_record(self) -> bytes | None:
        """Return this node's member record as last published, for others' `take_member`."""
        return self._running().publisher.said(_MEMBER)

    async def announce(self, service: str, payload: bytes, ttl_s: float) -> int:
        """Say that this node provides `service`, until `withdraw`; return how many nodes keep it.

        The word is repeated every `ttl_s` / 3 and believed for `ttl_s` (10 s … 2 h) after the last.
        Announcing again replaces it. Raises ValueError when a limit is broken.
        """
        if not TTL_MIN_S <= ttl_s <= TTL_MAX_S:
            raise ValueError(f"a service's ttl is {TTL_MIN_S:g} s to {TTL_MAX_S} s")

        def make(seq: int, expiry: int) -> Record:
            return self._service(service, payload, seq, expiry)

        return await self._running().publisher.begin(f"service:{service}", make, ttl_s)

    async def withdraw(self, service: str) -> None:
        """Take back what `announce` said; nothing happens if nothing was said."""

        def make(seq: int, expiry: int) -> Record:
            record = self._service(service, b"", seq, expiry)
            return msgspec.structs.replace(record, withdrawn=True)

        await self._running().publisher.end(f"service:{service}", make)

    # -- what others say

    async def member(self, node: NodeId) -> MemberRecord | None:
        """Return the node's newest record that can be found, or None."""
        key = member_key(self._mesh_id, node)
        for signed in await self._running().walker.records(key, quorum=QUORUM):
            if isinstance(signed.record, MemberRecord):
                return signed.record
        return None

    async def members(self) -> dict[NodeId, MemberRecord]:
        """Return every member that can be found. To ask each second costs a few datagrams.

        A newcomer is seen by the next call in a mesh of up to 128, and up to some 8 newcomers a
        minute in a larger one; others within as many calls as the listing has sets (16 for 1,000).
        """
        return await self._running().listing.read()

    def take_member(self, raw: bytes) -> bool:
        """Take in a member record that came by another way, for example by gossip.

        Says whether it is genuine and holds now; then `on_member` and `members` know it.
        """
        return self._found.put(news_key(self._mesh_id), raw, self._clock()).accepted

    async def ping(
        self, node: NodeId, address: Address | None = None, timeout_s: float = PING_TIMEOUT_S
    ) -> float | None:
        """Return the round trip to a member (s), or None when it does not answer in time.

        Without an address the routing table must know one. A second is the longest that is waited.
        """
        protocol, loop = self._running().protocol, asyncio.get_running_loop()
        if address is None:
            contact = protocol.router.get(node_key(self._mesh_id, node))
            if contact is None:
                return None
            address = contact.address
        began = loop.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if await protocol.ask(node, address, messages.Ping()) is not None:
                    return loop.time() - began
        return None

    async def providers(self, service: str) -> list[ServiceRecord]:
        """Return the service's providers, newest word of each, ordered by node.

        Asks only for what is not known already, so that polling costs a small datagram per node.
        """
        key = service_key(self._mesh_id, service)
        records = await self._running().walker.poll(key)
        found = [s.record for s in records if isinstance(s.record, ServiceRecord)]
        return sorted((r for r in found if not r.withdrawn), key=lambda r: r.node)

    # -- inside

    def _make_protocol(self) -> Protocol:
        return Protocol(
            own_key=self._own_key,
            mesh_id=self._mesh_id,
            seal=self._seal,
            verifier=self._verifier,
            store=self._store,
            reach=self._reach,
            certificate=self._certificate,
            clock=self._clock,
            rng=self._rng,
            send_once=self._ports.send_once,
            admitted=self._on_admitted,
            heard=self._heard,
            ways=self._ways,
        )

    def _running(self) -> _Parts:
        if self._parts is None:
            raise NotRunning("discovery is not running", hint="Start the agent with `agent up`.")
        return self._parts

    def _on_admitted(self, contact: Contact) -> None:
        if self._parts is not None:
            self._parts.publisher.offer(contact)

    def _service(self, service: str, payload: bytes, seq: int, expiry: int) -> ServiceRecord:
        return ServiceRecord(
            node=self._key.id.ed25519,
            certificate=self._certificate,
            service=service,
            payload=payload,
            seq=seq,
            expiry=expiry,
        )

    def _purge(self) -> None:
        """Forget what holds no more, and whom nobody can vouch for."""
        now = self._clock()
        self._store.purge(now)
        self._found.purge(now)
        self._told.purge(now)
