"""Discovery: the mesh's members and services, found and published over the DHT.

The daemon uses it; it knows nothing of tickets, WireGuard or models. What it returns is verified:
the node signed it, its certificate stands now, it has not expired, and it is the newest found.

Nothing here raises for what others do or fail to do: a lookup takes at most WALK_S (2 s) and
returns what was found. A mesh of one finds its own records. Only the publisher repeats its records,
at a third of their lives, and at once to a newcomer that should store them.
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
from agent.discovery.endpoints import resolve
from agent.discovery.port import open_port
from agent.discovery.protocol import Address, Protocol
from agent.discovery.publish import Publisher
from agent.discovery.record import (
    TTL_MAX_S,
    MemberRecord,
    Record,
    ServiceRecord,
    Verifier,
    VerifyCertificate,
    member_key,
    node_key,
    service_key,
)
from agent.discovery.seal import Seal
from agent.discovery.store import RecordStore
from agent.discovery.walk import Walker
from agent.errors import NotRunning
from agent.identity.keys import NodeId, NodeKey

log = logging.getLogger(__name__)

# A member record is believed for this long after its node's last word.
MEMBER_TTL_S = 900.0
TTL_MIN_S = 10.0
# A single record is found when this many of the nearest have answered: enough that three which
# withhold it, or give an old one, change nothing.
QUORUM = 4
# Contacts not heard for this long are asked whether they are there.
QUIET_S = 15.0
PINGS_PER_TICK = 8
TICK_S = 1.0
STOP_S = 1.0
PURGE_S = 30.0
REFRESH_S = 300.0
# Tries to come back when nobody is known: the first after 2 s, then doubling to 30 s.
RETRY_MIN_S, RETRY_MAX_S = 2.0, 30.0
REMEMBERED_MAX = 64
# Member records fetched at the same time by `members`.
MEMBERS_PARALLEL = 8
MEMBERS = "members"


class _MemberPayload(msgspec.Struct, frozen=True):
    seq: int


@dataclass(frozen=True)
class _Parts:
    """What exists between `start` and `stop`."""

    protocol: Protocol
    walker: Walker
    publisher: Publisher
    maintenance: asyncio.Task[None]


@dataclass
class _Upkeep:
    """When the next of each chore is due (loop time, s)."""

    purge_at: float
    refresh_at: float
    retry_at: float
    retry_s: float = RETRY_MIN_S


class Discovery:
    """One node's part in the DHT. All methods belong to the event loop that `start` ran in."""

    def __init__(
        self,
        key: NodeKey,
        mesh_id: bytes,
        network_key: bytes,
        verify_certificate: VerifyCertificate,
        listen: Address,
        certificate: bytes,
        *,
        reachable: bool = True,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        """Prepare; nothing is opened before `start`.

        `certificate` is the node's own, encoded: it is shown to others, who answer members only.
        `listen` is (IP address, UDP port); port 0 takes a free one, "::" serves IPv4 too.
        `reachable` False: others answer us but do not come to us with their questions.
        """
        self._key = key
        self._mesh_id = mesh_id
        self._listen = listen
        self._certificate = certificate
        self._reachable = reachable
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._seal = Seal(key, mesh_id, network_key)
        self._verifier = Verifier(mesh_id, verify_certificate)
        self._own_key = node_key(mesh_id, key.id)
        self._store = RecordStore(self._verifier)
        self._found = RecordStore(self._verifier)
        self._member_seq = 0
        self._remembered: list[Contact] = []
        self._endpoints: list[str] = []
        self._parts: _Parts | None = None

    @property
    def port(self) -> int:
        """The UDP port that is open; NotRunning before `start`."""
        port: int = self._running().protocol.transport.get_extra_info("sockname")[1]
        return port

    @property
    def counters(self) -> Mapping[str, int]:
        """What was sent, asked and refused since `start`, by name."""
        return dict(self._parts.protocol.counters) if self._parts else {}

    def contacts(self) -> list[tuple[NodeId, Address]]:
        """Return the routing table: nodes that answered lately, with the address that did."""
        return [(c.node, c.address) for c in self._running().protocol.router.contacts()]

    async def start(self) -> None:
        """Open the port and begin to serve. Raises EnvironmentFault when it cannot be opened."""
        if self._parts is not None:
            return
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_datagram_endpoint(
            self._make_protocol, sock=open_port(*self._listen)
        )
        walker = Walker(
            self._mesh_id, self._own_key, protocol, self._store, self._found, self._clock
        )
        publisher = Publisher(self._key, self._mesh_id, protocol, walker, self._store, self._clock)
        maintenance = loop.create_task(self._maintain(), name="discovery")
        self._parts = _Parts(protocol, walker, publisher, maintenance)
        log.info("discovery.started port=%d node=%s", self.port, self._key.id)

    async def stop(self) -> None:
        """Say goodbye, close the port and end the task; safe to call twice.

        What was published runs out by itself; `withdraw` before takes it back at once.
        """
        parts, self._parts = self._parts, None
        if parts is None:
            return
        self._remembered = self._worth_remembering(parts.protocol)
        parts.maintenance.cancel()
        await asyncio.wait([parts.maintenance], timeout=STOP_S)
        parts.protocol.goodbye()
        parts.protocol.transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await parts.protocol.closed.wait()
        log.info("discovery.stopped")

    async def bootstrap(self, endpoints: Sequence[str]) -> int:
        """Greet "HOST:PORT"s and the contacts remembered by `load`; return how many answered.

        Names are resolved at each call. The endpoints are kept: while nobody is known, they are
        tried again and again. What is no endpoint is logged and passed over.
        """
        parts = self._running()
        protocol = parts.protocol
        self._endpoints = list(dict.fromkeys([*endpoints, *self._endpoints]))[:REMEMBERED_MAX]
        calls = [protocol.ask(c.node, c.address, messages.Ping()) for c in self._remembered]
        for address in await resolve(endpoints):
            calls.append(protocol.ask(None, address, messages.Ping()))
        answers = await asyncio.gather(*calls)
        answered = sum(answer is not None for answer in answers)
        if answered:
            await parts.walker.nodes(self._own_key)
        log.info("discovery.bootstrapped asked=%d answered=%d", len(calls), answered)
        return answered

    async def publish_member(self, record: MemberRecord) -> int:
        """Publish where this node can be reached, now and until `stop`; return how many keep it.

        Sequence and expiry are set here. The record's certificate is also the one shown to others
        from now on. The node becomes a provider of the service "members". Raises ValueError when
        the record is too large.
        """
        parts = self._running()
        self._certificate = record.certificate
        parts.protocol.set_certificate(record.certificate)

        def member(seq: int, expiry: int) -> Record:
            self._member_seq = seq
            return msgspec.structs.replace(record, seq=seq, expiry=expiry)

        def provider(seq: int, expiry: int) -> Record:
            payload = msgspec.msgpack.encode(_MemberPayload(self._member_seq))
            return self._service(MEMBERS, payload, seq, expiry)

        kept = await parts.publisher.begin("member", member, MEMBER_TTL_S)
        await parts.publisher.begin(f"service:{MEMBERS}", provider, MEMBER_TTL_S)
        return kept

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

    async def member(self, node: NodeId) -> MemberRecord | None:
        """Return the node's newest record that can be found, or None."""
        key = member_key(self._mesh_id, node)
        for signed in await self._running().walker.records(key, quorum=QUORUM):
            if isinstance(signed.record, MemberRecord):
                return signed.record
        return None

    async def members(self) -> dict[NodeId, MemberRecord]:
        """Return every member that can be found; fetches only records that have changed."""
        walker = self._running().walker
        limit = asyncio.Semaphore(MEMBERS_PARALLEL)

        async def fetch(provider: ServiceRecord) -> MemberRecord | None:
            for signed in walker.known(member_key(self._mesh_id, provider.id)):
                held = signed.record
                if isinstance(held, MemberRecord) and held.seq >= _member_seq(provider):
                    return held
            async with limit:
                return await self.member(provider.id)

        records = await asyncio.gather(*map(fetch, await self.providers(MEMBERS)))
        return {record.id: record for record in records if record is not None}

    async def providers(self, service: str) -> list[ServiceRecord]:
        """Return the service's providers, newest word of each, ordered by node.

        Asks only for what is not known already, so that polling costs a small datagram per node.
        """
        key = service_key(self._mesh_id, service)
        records = await self._running().walker.records(key)
        found = [s.record for s in records if isinstance(s.record, ServiceRecord)]
        return sorted((r for r in found if not r.withdrawn), key=lambda r: r.node)

    def save(self) -> bytes:
        """Return what a restart needs to come back without its bootstraps; holds no secret."""
        protocol = self._parts.protocol if self._parts else None
        return saved.dump(self._worth_remembering(protocol), self._endpoints)

    def load(self, state: bytes) -> None:
        """Remember what `save` gave, for `bootstrap`. Raises StateError when it is damaged."""
        contacts, endpoints = saved.parse(self._mesh_id, state)
        self._remembered = contacts[:REMEMBERED_MAX]
        self._endpoints = endpoints[:REMEMBERED_MAX]

    # -- inside

    def _make_protocol(self) -> Protocol:
        return Protocol(
            own_key=self._own_key,
            mesh_id=self._mesh_id,
            seal=self._seal,
            verifier=self._verifier,
            store=self._store,
            certificate=self._certificate,
            serves=self._reachable,
            clock=self._clock,
            rng=self._rng,
            admitted=self._on_admitted,
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

    def _worth_remembering(self, protocol: Protocol | None) -> list[Contact]:
        contacts: list[Contact] = protocol.router.contacts() if protocol else []
        contacts.sort(key=lambda c: c.heard, reverse=True)
        known = {contact.id for contact in contacts}
        contacts += [c for c in self._remembered if c.id not in known]
        return contacts[:REMEMBERED_MAX]

    async def _maintain(self) -> None:
        """Once a tick: repeat records, notice who is gone, forget what expired, come back."""
        loop = asyncio.get_running_loop()
        upkeep = _Upkeep(loop.time() + PURGE_S, loop.time() + REFRESH_S, 0.0)
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self._tick(self._running(), upkeep, loop.time())
            except Exception:  # a fault of ours must not end the upkeep for good
                log.exception("discovery.upkeep_failed")

    async def _tick(self, parts: _Parts, upkeep: _Upkeep, now: float) -> None:
        contacts: list[Contact] = parts.protocol.router.contacts()
        quiet = [c for c in contacts if now - c.heard > QUIET_S]
        for contact in self._rng.sample(quiet, min(len(quiet), PINGS_PER_TICK)):
            parts.protocol.ask(contact.node, contact.address, messages.Ping())
        await parts.publisher.repeat_due()
        if now >= upkeep.purge_at:
            upkeep.purge_at = now + PURGE_S
            self._store.purge(self._clock())
            self._found.purge(self._clock())
            self._remembered = self._worth_remembering(parts.protocol)
        if now >= upkeep.refresh_at:
            upkeep.refresh_at = now + REFRESH_S * self._rng.uniform(0.8, 1.2)
            for key in (self._own_key, *parts.protocol.get_refresh_ids()):
                await parts.walker.nodes(key)
        if contacts:
            upkeep.retry_at, upkeep.retry_s = now + RETRY_MIN_S, RETRY_MIN_S
        elif now >= upkeep.retry_at and (self._endpoints or self._remembered):
            upkeep.retry_s = min(2 * upkeep.retry_s, RETRY_MAX_S)
            upkeep.retry_at = now + upkeep.retry_s
            await self.bootstrap(self._endpoints)


def _member_seq(provider: ServiceRecord) -> int:
    try:
        return msgspec.msgpack.decode(provider.payload, type=_MemberPayload).seq
    except (msgspec.DecodeError, ValueError, RecursionError):
        return 0
