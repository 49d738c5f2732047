"""Thousands of nodes on virtual time: the real discovery code in a simulated network.

    python tests/bench/mesh.py --only simulation [--quick]

Each node is a whole `Discovery` with its sealed datagrams, certificates, signatures and upkeep;
only the clock and the wire are simulated (see `virtual.py`), and arithmetic is remembered across
the nodes of one process (see `root.py`). A datagram takes 1 to 90 ms and one in a hundred is lost.
One node in ten is a member that means harm (see `hostile.py`), and outsiders send noise all the
time. Nodes die without a word and others come, 20 % of them an hour, each with a new key.
Meshes of up to 1,000 grow node by node; of 10,000 the routing tables are filled (see `filled.py`),
and who comes later joins like anyone.

A lookup asks an honest living node for the record of another honest living member. It succeeds when
that record is found with the sequence that its node last published.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from report import Row, percentiles, row

from agent.discovery.contact import Contact
from agent.discovery.dhtkeys import member_key
from agent.discovery.lookup import Lookup
from agent.discovery.node import Discovery
from agent.discovery.walk import Walk
from agent.identity.keys import NodeKey
from dht.filled import fill
from dht.hostile import NUISANCE_S, Hostile
from dht.root import Root, key_of, remembered_arithmetic
from dht.virtual import Host, Network, run

EPOCH = 1_800_000_000.0
PORT = 4001
LOSS = 0.01
# Members whose addresses a newcomer is given, as a ticket and the reply to it do.
BOOTSTRAPS = 6
# All have come after so long, in even steps.
GROW_S = 80.0
# Of those in filled tables, who have died since they were heard: a table of 160 is gone through in
# 160 s, so that at 20 % an hour one that dies is known for 80 s more on average.
STALE = 80 * 0.2 / 3600
# Noise from outsiders, datagrams a second for each 1,000 nodes.
NOISE_PER_S = 20.0
# Calls of `members` until each set of the listing of 1,000 has been asked for twice.
LISTED_POLLS = 34
# A node takes part in lookups when it, or what it said, has been there for so long.
SETTLED_S = 10.0


@dataclass(frozen=True)
class Plan:
    """One simulation; what is a part is a part of the nodes.

    `published` of them publish their records and can be looked up, all take part in keeping them.
    `filled`: the mesh does not grow, its routing tables are filled.
    """

    size: int
    seconds: float
    lookups: int
    hostile: float = 0.1
    churn_per_hour: float = 0.2
    published: float = 1.0
    filled: bool = False
    listers: int = 0
    seed: int = 1


@dataclass(eq=False)
class Peer:
    """One simulated member; times are loop times."""

    key: NodeKey
    node: Discovery
    host: Host
    hostile: Hostile | None = None
    since: float = math.inf
    published: float = math.inf


@dataclass
class Found:
    """What a run showed. Times in s; `listed` is the part of the members that were listed, in %."""

    asked: int = 0
    found: int = 0
    took_s: list[float] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)
    listed: list[float] = field(default_factory=list)
    datagrams_per_s: float = 0.0
    died: int = 0


class Simulation:
    """A mesh of simulated nodes. Everything random follows from the plan's seed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.network = Network(self.rng, loss=LOSS)
        self.loop = asyncio.get_running_loop()
        self.root = Root(f"simulation {plan.seed}")
        self.peers: list[Peer] = []
        self.found = Found()
        self.questions: dict[bytes, int] = {}
        self._born = 0
        self._bad: list[Contact] = []
        self._lives: dict[asyncio.Task[None], Peer] = {}
        self._dying: asyncio.Task[None] | None = None
        self._spared: list[Peer] = []

    def clock(self) -> float:
        """Unix time, as all nodes here know it."""
        return EPOCH + self.loop.time()

    async def grow(self) -> None:
        """Let all nodes come, one after another, and settle; from now on some die."""
        if self.plan.filled:
            await self._fill()
        self._dying = asyncio.create_task(self._churn())
        while self._born < self.plan.size:
            # Whoever is first has nobody to be tested by, or to be led astray by.
            self._spawn(harmless=self._born < BOOTSTRAPS)
            await asyncio.sleep(self.rng.expovariate(self.plan.size / GROW_S))
        await asyncio.sleep(2 * SETTLED_S)

    async def live(self) -> None:
        """Harass and look up for the plan's time."""
        plan, end, sent = self.plan, self.loop.time() + self.plan.seconds, self.network.sent
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._harass(end))
            tasks.create_task(self._noise(end))
            for _ in range(plan.lookups):
                await asyncio.sleep(plan.seconds / plan.lookups)
                tasks.create_task(self._look_up())
        self.found.datagrams_per_s = (self.network.sent - sent) / plan.seconds / plan.size

    async def list_all(self) -> None:
        """Have some nodes list the members, as an agent does, once a second for a while.

        Note which part of the living each found.
        """
        settled = self.loop.time() - SETTLED_S
        askers = self.rng.sample(self._settled(), self.plan.listers)
        self._spared += askers
        for _ in range(LISTED_POLLS):
            listed = await asyncio.gather(*(asker.node.members() for asker in askers))
            await asyncio.sleep(1.0)
        there = {p.key.id for p in self._settled() if p.published < settled}
        self.found.listed += [100 * len(there & set(found)) / len(there) for found in listed]

    def close(self) -> None:
        """End all nodes."""
        if self._dying is not None:
            self._dying.cancel()
        for peer in list(self.peers):
            self._kill(peer)

    # -- the mesh

    async def _fill(self) -> None:
        """Start all nodes within a second, as they are when they have been there for long."""
        tables = []
        for _ in range(self.plan.size):
            peer = self._make()
            await self._start(peer, harmless=False)
            contact = Contact(self.root.mesh_id, peer.key.id, peer.host.address, PORT)
            tables.append((contact, peer.node._running().protocol.router))
            await asyncio.sleep(1 / self.plan.size)
        fill(tables, self.loop.time(), self.rng)
        for peer in self.rng.sample(self.peers, int(STALE * self.plan.size)):
            self._kill(peer)
            self._spawn()
        for peer in list(self.peers):
            life = asyncio.create_task(self._say(peer))
            self._lives[life] = peer
            life.add_done_callback(self._lives.pop)

    def _spawn(self, *, harmless: bool = False) -> None:
        peer = self._make()
        life = asyncio.create_task(self._live(peer, harmless=harmless))
        self._lives[life] = peer
        life.add_done_callback(self._lives.pop)

    def _make(self) -> Peer:
        number, self._born = self._born, self._born + 1
        key = key_of(f"node {number}")
        host = self.network.host(f"20.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        node = Discovery(
            key, self.root.mesh_id, self.root.keys, self.root.verify, (host.address, PORT),
            self.root.certify(key.id), clock=self.clock, ports=host, rng=random.Random(number),
        )  # fmt: skip
        return Peer(key, node, host)

    async def _live(self, peer: Peer, *, harmless: bool) -> None:
        others = self.rng.sample(self.peers, min(BOOTSTRAPS, len(self.peers)))
        await self._start(peer, harmless=harmless)
        await peer.node.bootstrap([f"{other.host.address}:{PORT}" for other in others])
        await self._say(peer)

    async def _start(self, peer: Peer, *, harmless: bool) -> None:
        await peer.node.start()
        if not harmless and self.rng.random() < self.plan.hostile:
            self._bad.append(Contact(self.root.mesh_id, peer.key.id, peer.host.address, PORT))
            rng = random.Random(len(self._bad))
            peer.hostile = Hostile(peer.node, self.root.mesh_id, rng, self._bad)
        self.peers.append(peer)

    async def _say(self, peer: Peer) -> None:
        """Have a node publish its record, if it is one of those that do."""
        if self.rng.random() < self.plan.published:
            await peer.node.publish_member(self.root.record(peer.key, 1))
            peer.published = self.loop.time()
        peer.since = self.loop.time()

    def _kill(self, peer: Peer) -> None:
        """End a node as a power cut does."""
        self.peers.remove(peer)
        for life in [life for life, living in self._lives.items() if living is peer]:
            life.cancel()
        parts, peer.node._parts = peer.node._parts, None
        if parts is not None:
            parts.maintenance.cancel()
            parts.rejoin.close()
            parts.protocol.transport.abort()
            parts.protocol._questions.close()
        del self.network.hosts[peer.host.address]

    def _settled(self) -> list[Peer]:
        settled = self.loop.time() - SETTLED_S
        return [peer for peer in self.peers if peer.hostile is None and peer.since < settled]

    # -- what goes on

    async def _churn(self) -> None:
        """Have each node die at the plan's rate, and another come in its place."""
        per_s = self.plan.size * self.plan.churn_per_hour / 3600
        while True:
            await asyncio.sleep(self.rng.expovariate(per_s))
            # While the mesh grows there are fewer to die.
            if self.rng.random() * self.plan.size < len(self.peers):
                mortal = [peer for peer in self.peers if peer not in self._spared]
                self._kill(self.rng.choice(mortal))
                self.found.died += 1
                self._spawn()

    async def _harass(self, end: float) -> None:
        while self.loop.time() < end:
            await asyncio.sleep(NUISANCE_S)
            for hostile in [peer.hostile for peer in self.peers if peer.hostile is not None]:
                hostile.harass((self.rng.choice(self.peers).host.address, PORT))

    async def _noise(self, end: float) -> None:
        outsider = self.network.host("20.254.0.1")
        while self.loop.time() < end:
            await asyncio.sleep(1000 / NOISE_PER_S / self.plan.size)
            noise = self.rng.randbytes(self.rng.randrange(1400))
            outsider.send_once(noise, (self.rng.choice(self.peers).host.address, PORT))

    async def _look_up(self) -> None:
        settled = self.loop.time() - SETTLED_S
        asker = self.rng.choice(self._settled())
        wanted = self.rng.choice([p for p in self._settled() if p.published < settled])
        key = member_key(self.root.mesh_id, wanted.key.id)
        newest, began = _sequence(wanted), self.loop.time()
        record = await asker.node.member(wanted.key.id)
        if asker not in self.peers:
            return  # it died meanwhile
        found = self.found
        found.asked += 1
        found.took_s.append(self.loop.time() - began)
        found.questions.append(self.questions.get(key, 0))
        if record is not None and record.seq >= newest:
            found.found += 1
        else:
            self.missed(asker, wanted, None if record is None else record.seq - newest)

    def missed(self, asker: Peer, wanted: Peer, behind: int | None) -> None:
        """Be told of a lookup that failed; for whoever looks into why."""


def _sequence(peer: Peer) -> int:
    """Return the sequence of a node's record, or 0 while it is just being published again."""
    publication = peer.node._running().publisher._publications["member"]
    fresh = asyncio.get_running_loop().time() - publication.said_at < SETTLED_S
    return 0 if fresh or publication.signed is None else publication.signed.record.seq


@contextlib.contextmanager
def counted_questions(counts: dict[bytes, int]) -> Iterator[None]:
    """Have each walk in this process note by its key how many nodes it asked."""
    done = Walk.done

    async def counted(walk: Walk) -> Lookup:
        lookup = await done(walk)
        counts[walk.key] = lookup.asked
        return lookup

    Walk.done = counted  # type: ignore[method-assign]  # for this process
    try:
        yield
    finally:
        Walk.done = done  # type: ignore[method-assign]  # as it was


@contextlib.contextmanager
def drawn_from(rng: random.Random) -> Iterator[None]:
    """Draw what is drawn from the system, as nonces are, from here: a run can be repeated."""
    urandom, os.urandom = os.urandom, rng.randbytes
    try:
        yield
    finally:
        os.urandom = urandom


async def simulate(plan: Plan) -> Found:
    """Grow a mesh, let it live, and return what was found. On virtual time."""
    simulation = Simulation(plan)
    with counted_questions(simulation.questions):
        try:
            await simulation.grow()
            await simulation.live()
            if plan.listers:
                await simulation.list_all()
        finally:
            simulation.close()
    return simulation.found


def found_by(plan: Plan) -> Found:
    """Run one simulation, in a process that does nothing else."""
    # Old datagrams, and what else is refused, would be a line each.
    logging.getLogger("agent").setLevel(logging.ERROR)
    # To look for garbage among the objects of thousands of nodes took a fifth of the time, and
    # freed nothing that showed.
    gc.disable()
    try:
        with remembered_arithmetic(), drawn_from(random.Random(plan.seed)):
            return run(simulate(plan))
    finally:
        gc.enable()


def all_found(plans: Sequence[Plan]) -> list[Found]:
    """Run the simulations side by side, the longest first; a busy machine changes no figure."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, max_tasks_per_child=1, mp_context=get_context("spawn")) as pool:
        running = {plan: pool.submit(found_by, plan) for plan in sorted(plans, key=_cost)}
        return [running[plan].result() for plan in plans]


def _cost(plan: Plan) -> float:
    return -plan.size * (plan.seconds + GROW_S)


LOOKUP_GOAL_PERCENT = 99.9
LIMIT = (
    "virtual time; each signature verified once for all nodes of the process, X25519 stood in for; "
    "{published:.0%} of the nodes publish, {seconds:g} s of life, {died} died from the start on"
)
FILLED = "; routing tables filled at the start, and so old that some contacts are dead"
# A full run lets the smaller meshes live long enough for tables to age and records to be repeated;
# a quick one shows hostile members but little churn, and no mesh of 10,000. There 2 % publish: the
# others' records would cost more than they show.
QUICK = (
    Plan(100, 60.0, 1000, listers=3),
    Plan(500, 20.0, 2500, published=0.2),
)
FULL = (
    Plan(100, 1200.0, 2000, listers=3),
    Plan(1000, 360.0, 10000, listers=3),
    Plan(10000, 20.0, 5000, published=0.02, filled=True),
)


def rows(quick: bool) -> list[Row]:
    """Simulate, and return the figures; a quick run leaves out the mesh of 10,000."""
    plans = QUICK if quick else FULL
    made: list[Row] = []
    smallest = 0.0
    for plan, found in zip(plans, all_found(plans), strict=True):
        size = f"{plan.size:,} simulated nodes"
        limit = LIMIT.format(published=plan.published, seconds=plan.seconds, died=found.died)
        limit += FILLED if plan.filled else ""
        success, goal = 100 * found.found / found.asked, LOOKUP_GOAL_PERCENT
        name = f"lookup success, {size}"
        made.append(row(name, success, "%", goal=goal, higher=True, limit=limit))
        # A question and its answer. By log2: one bit of the key costs the same in any mesh.
        messages = 2 * sum(found.questions) / found.asked
        made.append(row(f"messages per lookup, {size}", messages, "datagrams", limit=limit))
        each = messages / math.log2(plan.size)
        made.append(
            row(f"messages per lookup and bit, {size}", each, "datagrams", goal=smallest or None)
        )
        smallest = smallest or each
        p50, p95 = (1000 * value for value in percentiles(found.took_s))
        made.append(row(f"lookup, {size}, p50", p50, "ms", limit=limit))
        made.append(row(f"lookup, {size}, p95", p95, "ms", goal=1000.0, limit=limit))
        if found.listed:
            made.append(row(f"members listed, {size}", min(found.listed), "%", limit=limit))
        made.append(row(f"traffic of a node, {size}", found.datagrams_per_s, "datagrams/s"))
    return made
