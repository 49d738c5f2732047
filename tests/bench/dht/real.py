"""Fifty real nodes in one process, over UDP on loopback; and the library as shipped beside them.

    python tests/bench/mesh.py --only dht [--quick]

Every node puts (announces a service of its own) and another gets it (looks up that service for the
first time), one after another. Then 30 % of the nodes are killed without a word, and all others put
in the same moment, then get in the same moment, before anyone can have noticed; and again one after
another after a while. The kademlia library does the same with the same numbers, in a process of its
own. Its calls with dead nodes are half a minute of waiting, during which ours are measured.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection

from kademlia.network import Server
from report import Row, percentiles, row

from agent.discovery.node import Discovery
from agent.identity.keys import NodeKey
from dht.root import Root, key_of

NODES = 50
DEAD = 0.3
PUT_GOAL_MS, GET_GOAL_MS, DEAD_GOAL_MS = 20.0, 5.0, 2000.0
SERVICE_TTL_S = 120.0
# Until what the first calls after a kill have found out is known to all.
LATER_S, QUICK_LATER_S = 20.0, 10.0
# The library's longest phase takes some 40 s; its process is given up after this.
LIBRARY_S = 240.0
# Idle is measured for so long, and polled as the agent does: members and one service each second.
IDLE_NODES, IDLE_S = 30, 20.0
# A goal of the whole agent is 1 % of a core; half of that is more than enough for this part.
IDLE_GOAL_PERCENT = 0.5

FAILED_MS = 60_000.0

EVERYONE = list(range(NODES))
LIVING = sorted(random.Random(30).sample(EVERYONE, NODES - int(NODES * DEAD)))

Times = list[float]
Found = dict[str, Times]
Call = Callable[[int], Awaitable[bool]]


async def timed(number: int, call: Call) -> float:
    """Return how long the call took (ms); one that did not succeed counts as a minute."""
    began = time.perf_counter()
    done = await call(number)
    return (time.perf_counter() - began) * 1000 if done else FAILED_MS


async def one_by_one(numbers: list[int], call: Call) -> Times:
    """Return how long each node's call took, one after another."""
    return [await timed(number, call) for number in numbers]


async def at_once(numbers: list[int], call: Call) -> Times:
    """Return how long each node's call took, all begun in one moment."""
    return await asyncio.gather(*(timed(number, call) for number in numbers))


class Mesh:
    """Covey's nodes."""

    def __init__(self) -> None:
        self._root = Root()
        self.nodes: list[tuple[NodeKey, Discovery]] = []

    async def start(self, count: int) -> None:
        """Start so many; each joins through the first and publishes its record."""
        root = self._root
        for number in range(count):
            key = key_of(f"real {number}")
            node = Discovery(
                key, root.mesh_id, root.keys, root.verify, ("127.0.0.1", 0), root.certify(key.id),
                rng=random.Random(number),
            )  # fmt: skip
            await node.start()
            self.nodes.append((key, node))
            if number:
                await node.bootstrap([f"127.0.0.1:{self.nodes[0][1].port}"])
            await node.publish_member(root.record(key, number + 1))

    def kill(self, numbers: list[int]) -> None:
        """End these without a goodbye."""
        for number in numbers:
            node = self.nodes[number][1]
            parts, node._parts = node._parts, None
            if parts is not None:
                parts.maintenance.cancel()
                parts.rejoin.close()
                parts.protocol._questions.close()
                parts.protocol.transport.abort()

    async def stop(self) -> None:
        """End all."""
        await asyncio.gather(*(node.stop() for _, node in self.nodes))

    def put(self, turn: str) -> Call:
        """Return a call that has a node announce a service that nobody announced before."""

        async def call(number: int) -> bool:
            node = self.nodes[number][1]
            return await node.announce(f"{turn} {number}", bytes(100), SERVICE_TTL_S) > 1

        return call

    def get(self, turn: str, living: list[int]) -> Call:
        """Return a call that has another living node look that service up."""

        async def call(number: int) -> bool:
            other = living[(living.index(number) + 7) % len(living)]
            found = await self.nodes[other][1].providers(f"{turn} {number}")
            return [record.id for record in found] == [self.nodes[number][0].id]

        return call


class Library:
    """The kademlia library's nodes."""

    def __init__(self) -> None:
        self.nodes: list[Server] = []

    async def start(self, count: int) -> None:
        """Start so many; each joins through the first."""
        for _ in range(count):
            node = Server()
            await node.listen(0, interface="127.0.0.1")
            self.nodes.append(node)
            if len(self.nodes) > 1:
                await node.bootstrap([("127.0.0.1", self._port(0))])

    def kill(self, numbers: list[int]) -> None:
        """End these; the library has no goodbye."""
        for number in numbers:
            self.nodes[number].stop()

    def _port(self, number: int) -> int:
        port: int = self.nodes[number].transport.get_extra_info("sockname")[1]
        return port

    def put(self, turn: str) -> Call:
        """Return a call that sets a key that nobody set before."""

        async def call(number: int) -> bool:
            return bool(await self.nodes[number].set(f"{turn} {number}", bytes(100)))

        return call

    def get(self, turn: str, living: list[int]) -> Call:
        """Return a call that has another living node get that key."""

        async def call(number: int) -> bool:
            other = living[(living.index(number) + 7) % len(living)]
            return await self.nodes[other].get(f"{turn} {number}") is not None

        return call


async def healthy(mesh: Mesh | Library) -> Found:
    """Start the nodes; return the times (ms) while all live, by what was done."""
    await mesh.start(NODES)
    await asyncio.sleep(1.0)
    return {
        "put": await one_by_one(EVERYONE, mesh.put("all")),
        "get": await one_by_one(EVERYONE, mesh.get("all", EVERYONE)),
    }


async def killed(mesh: Mesh | Library) -> Found:
    """Kill a part of the nodes, and return the times of the first calls of the others."""
    mesh.kill([number for number in EVERYONE if number not in LIVING])
    return {
        f"put, {DEAD:.0%} just killed": await at_once(LIVING, mesh.put("killed")),
        f"get, {DEAD:.0%} just killed": await at_once(LIVING, mesh.get("killed", LIVING)),
    }


async def covey(later_s: float) -> Found:
    """Measure Covey's nodes; those that live are measured again `later_s` after the kill."""
    mesh = Mesh()
    try:
        found = await healthy(mesh) | await killed(mesh)
        await asyncio.sleep(later_s)
        found[f"put, {DEAD:.0%} dead"] = await one_by_one(LIVING, mesh.put("dead"))
        found[f"get, {DEAD:.0%} dead"] = await one_by_one(LIVING, mesh.get("dead", LIVING))
        return found
    finally:
        await mesh.stop()


async def library(say: Callable[[Found], None]) -> None:
    """Measure the library's nodes; say what was found while all lived, and then the rest."""
    mesh = Library()
    try:
        say(await healthy(mesh))
        say(await killed(mesh))
    finally:
        for node in mesh.nodes:
            node.stop()


def library_beside(end: Connection) -> None:
    """Be the process that measures the library; its warnings about dead nodes are kept quiet."""
    for name in ("kademlia", "rpcudp"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    asyncio.run(library(end.send))


async def idle(seconds: float) -> float:
    """Return the part of a core (%) that one idle node of IDLE_NODES takes, polled each second."""
    mesh = Mesh()
    await mesh.start(IDLE_NODES)

    async def poll(node: Discovery, end: float) -> None:
        while time.monotonic() < end:
            await node.members()
            await node.providers("heads")
            await asyncio.sleep(1.0)

    try:
        await asyncio.gather(*(poll(node, time.monotonic() + 3) for _, node in mesh.nodes))
        began = time.process_time()
        end = time.monotonic() + seconds
        await asyncio.gather(*(poll(node, end) for _, node in mesh.nodes))
        return (time.process_time() - began) / seconds / IDLE_NODES * 100
    finally:
        await mesh.stop()


def measured(idle_s: float, later_s: float) -> tuple[Found, Found, float]:
    """Return Covey's times, the library's, and the idle share of a core (%).

    Each is alone while its nodes live. While the library waits for its dead ones, ours run.
    """
    here, there = Pipe(duplex=False)
    process = Process(target=library_beside, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        peers: Found = received(here)
        ours, share = asyncio.run(covey(later_s)), asyncio.run(idle(idle_s))
        return ours, peers | received(here), share
    finally:
        process.kill()
        process.join()


def received(end: Connection) -> Found:
    """Return what the library's process says next; raises when it ended or hangs."""
    if not end.poll(LIBRARY_S):
        raise TimeoutError("the kademlia library's nodes did not end")
    found: Found = end.recv()
    return found


def rows(quick: bool) -> list[Row]:
    """Measure, and return the figures; a minute, in which the library mostly waits."""
    spans = (IDLE_S / 2, QUICK_LATER_S) if quick else (IDLE_S, LATER_S)
    ours, peers, share = measured(*spans)
    goals = {"put": PUT_GOAL_MS, "get": GET_GOAL_MS}
    limit = "one process; the library checks nothing and takes the first value that it is given"
    made = []
    for what, times in ours.items():
        goal = goals.get(what, DEAD_GOAL_MS)
        peer = percentiles(peers[what]) if what in peers else (None, None)
        for part, value, theirs in zip(("p50", "p95"), percentiles(times), peer, strict=True):
            name = f"DHT {what}, {NODES} nodes, {part}"
            made.append(row(name, value, "ms", goal=goal, peer=theirs, limit=limit))
    name = f"idle discovery in a mesh of {IDLE_NODES}, polled each second"
    made.append(row(name, share, "% of a core", goal=IDLE_GOAL_PERCENT))
    return made
