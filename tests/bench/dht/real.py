"""Fifty real nodes in one process, over UDP on loopback; and the library as shipped beside them.

    python tests/bench/mesh.py --only dht [--quick]

Every node puts (announces a service of its own) and another gets it (looks up that service for the
first time), one after another. Then 30 % of the nodes are killed without a word, and the rest do
the same at once, and again after a while. The kademlia library does the same with the same numbers;
its times with dead nodes are so long that fewer are measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator

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
LATER_S = 20.0
# The library's calls last half a minute each when a third is dead.
PEER_CALLS_WITH_DEAD, PEER_CALLS_QUICK = 4, 2
# Idle is measured for so long, and polled as the agent does: members and one service each second.
IDLE_NODES, IDLE_S = 30, 20.0
# A goal of the whole agent is 1 % of a core; half of that is more than enough for this part.
IDLE_GOAL_PERCENT = 0.5

Times = list[float]
Call = Callable[[int], Awaitable[bool]]


async def time_calls(numbers: list[int], call: Call) -> Times:
    """Return how long each call took (ms); one that did not succeed counts as a minute."""
    times = []
    for number in numbers:
        began = time.perf_counter()
        done = await call(number)
        times.append((time.perf_counter() - began) * 1000 if done else 60_000.0)
    return times


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


async def measure(mesh: Mesh | Library, *, calls_with_dead: int, later: bool) -> dict[str, Times]:
    """Return the times (ms) by what was done."""
    await mesh.start(NODES)
    await asyncio.sleep(1.0)
    everyone = list(range(NODES))
    found = {
        "put": await time_calls(everyone, mesh.put("all")),
        "get": await time_calls(everyone, mesh.get("all", everyone)),
    }
    dead = random.Random(30).sample(everyone, int(NODES * DEAD))
    living = [number for number in everyone if number not in dead]
    mesh.kill(dead)
    asked = living[:calls_with_dead]
    found["put, 30 % just killed"] = await time_calls(asked, mesh.put("killed"))
    found["get, 30 % just killed"] = await time_calls(asked, mesh.get("killed", living))
    if later:
        await asyncio.sleep(LATER_S)
        found["put, 30 % dead"] = await time_calls(asked, mesh.put("dead"))
        found["get, 30 % dead"] = await time_calls(asked, mesh.get("dead", living))
    return found


async def covey() -> dict[str, Times]:
    """Measure Covey's nodes."""
    mesh = Mesh()
    try:
        return await measure(mesh, calls_with_dead=NODES, later=True)
    finally:
        await mesh.stop()


async def library(calls_with_dead: int) -> dict[str, Times]:
    """Measure the library's."""
    mesh = Library()
    try:
        return await measure(mesh, calls_with_dead=calls_with_dead, later=False)
    finally:
        for node in mesh.nodes:
            node.stop()


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


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """Keep the library's warnings about dead nodes off the terminal."""
    loggers = [logging.getLogger(name) for name in ("kademlia", "rpcudp")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def rows(quick: bool) -> list[Row]:
    """Measure, and return the figures; two minutes, of which the library takes most."""
    ours = asyncio.run(covey())
    with quiet_library():
        peers = asyncio.run(library(PEER_CALLS_QUICK if quick else PEER_CALLS_WITH_DEAD))
    goals = {"put": (PUT_GOAL_MS, None), "get": (GET_GOAL_MS, None)}
    made = []
    for what, times in ours.items():
        goal_p50, goal_p95 = goals.get(what, (None, DEAD_GOAL_MS))
        peer_p50, peer_p95 = percentiles(peers[what]) if what in peers else (None, None)
        limit = "one process; the library checks nothing and takes the first value that it is given"
        p50, p95 = percentiles(times)
        name = f"DHT {what}, {NODES} nodes"
        made.append(row(f"{name}, p50", p50, "ms", goal=goal_p50, peer=peer_p50, limit=limit))
        made.append(row(f"{name}, p95", p95, "ms", goal=goal_p95, peer=peer_p95, limit=limit))
    share = asyncio.run(idle(IDLE_S / 2 if quick else IDLE_S))
    name = f"idle discovery in a mesh of {IDLE_NODES}, polled each second"
    made.append(row(name, share, "% of a core", goal=IDLE_GOAL_PERCENT))
    return made
