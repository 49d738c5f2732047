"""Thirty control planes in one process, each with its own thread; messages from random authors.

Real TCP, Noise and yamux on loopback. All nodes share one interpreter, so at most one runs at a
time: what a message takes here is what 30 machines do one after the other, not side by side.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from report import Row, conditions, finish, parser, percentiles, row

from agent.control import ControlPlane
from agent.control import host as control_host
from agent.control.bridge import Guest, TrioThread
from agent.control.setup import Setup
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys
from gossip import library

NODES = 30
LINKS_EACH = 3
TOPIC = "bench"
PAYLOAD_BYTES = 200
# More than 30 nodes say together when nothing happens, and what one interpreter can do for all.
PER_S = 4.0
# A burst: more than one interpreter can do for all at once, so the times have no goal.
BURST_PER_S = 50.0
WAIT_S = 30.0
IDLE_S, QUICK_IDLE_S = 20.0, 5.0
KEYS = NetworkKeys.single(bytes(range(32)))
ONE_INTERPRETER = "30 nodes share one interpreter: side by side they would be faster"
WHOLE = "; the peer's are those of its messages that reached everybody"


class Heard:
    """One node and when it heard which message."""

    def __init__(self, number: int, members: Iterable[NodeId]) -> None:
        self.key = key(number)
        self.plane = ControlPlane(self.key, KEYS, ["127.0.0.1:0"])
        self.plane.set_members(members)
        self.plane.subscribe(TOPIC, self.take)
        self.at: dict[bytes, float] = {}

    async def take(self, author: NodeId, payload: bytes) -> bool:
        self.at.setdefault(payload, time.monotonic())
        return True


def key(number: int) -> NodeKey:
    return NodeKey((1000 + number).to_bytes(32, "big"))


def star() -> list[tuple[int, int]]:
    return [(n, 0) for n in range(1, NODES)]


def graph(chance: random.Random) -> list[tuple[int, int]]:
    """Each node links to three others, as the daemon does."""
    return [
        (one, two)
        for one in range(NODES)
        for two in chance.sample([n for n in range(NODES) if n != one], LINKS_EACH)
    ]


async def started(edges: Iterable[tuple[int, int]]) -> list[Heard]:
    members = [key(n).id for n in range(NODES)]
    nodes = [Heard(n, members) for n in range(NODES)]
    for each in nodes:
        await each.plane.start()
    wanted: dict[int, set[int]] = {n: set() for n in range(NODES)}
    for one, two in edges:
        wanted[one].add(two)
    for one, others in wanted.items():
        nodes[one].plane.keep_links({nodes[n].key.id: nodes[n].plane.addresses for n in others})
    pairs = {(min(edge), max(edge)) for edge in edges}
    async with asyncio.timeout(60):
        while sum([len(await each.plane.links()) for each in nodes]) != 2 * len(pairs):  # noqa: ASYNC110 - links come up in other threads
            await asyncio.sleep(0.2)
    # The streams of gossip are opened after the links.
    await asyncio.sleep(2.0)
    return nodes


async def told(
    name: str,
    edges: list[tuple[int, int]],
    count: int,
    per_s: float,
    idle_s: float,
    library: tuple[float, list[float]],
) -> list[Row]:
    """Idle, then publish `count` messages; return how they arrived, and what both cost."""
    chance = random.Random(2)
    nodes = await started(edges)
    sent: dict[bytes, tuple[int, float]] = {}
    idle_cpu = time.process_time()
    await asyncio.sleep(idle_s)
    idle_share = 100 * (time.process_time() - idle_cpu) / idle_s / NODES
    cpu = time.process_time()
    for number in range(count):
        payload = number.to_bytes(4, "big") + chance.randbytes(PAYLOAD_BYTES - 4)
        author = chance.randrange(NODES)
        sent[payload] = (author, time.monotonic())
        await nodes[author].plane.publish(TOPIC, payload)
        await asyncio.sleep(1 / per_s)
    # Until all are there; the repairs that follow belong to what a message costs.
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and missing(nodes, sent):  # noqa: ASYNC110 - seen from outside
        await asyncio.sleep(0.05)
    await asyncio.sleep(3.0)
    cpu = time.process_time() - cpu
    for each in nodes:
        await each.plane.stop()
    wanted = len(sent) * (NODES - 1)
    arrived = wanted - missing(nodes, sent)
    last = [
        max(each.at[p] for n, each in enumerate(nodes) if n != author) - at
        for p, (author, at) in sent.items()
        if all(p in each.at for n, each in enumerate(nodes) if n != author)
    ]
    p50, p95 = percentiles(last) if last else (WAIT_S, WAIT_S)
    theirs, took = library
    their_p50, their_p95 = percentiles(took) if took else (None, None)
    name = f"gossip, {name} of {NODES}, {per_s:g}/s"
    goal = 1.0 if per_s <= PER_S else None
    found = [
        row(f"{name}: delivered", 100 * arrived / wanted, "%", goal=100.0, higher=True,
            peer=theirs, limit="peer: py-libp2p's own GossipSub, degree 6"),
        row(f"{name}: to the last node, p50", p50, "s", goal=goal, peer=their_p50,
            limit=ONE_INTERPRETER + WHOLE),
        row(f"{name}: to the last node, p95", p95, "s", goal=goal, peer=their_p95,
            limit=ONE_INTERPRETER + WHOLE),
    ]  # fmt: skip
    if goal is None:
        return found
    return [
        *found,
        row(f"{name}: CPU of a node for a message", 1e3 * cpu / count / NODES, "ms",
            limit="with repairs, and with the node's share of links"),
        row(f"{name}: idle CPU of a node's control plane", idle_share, "% of a core", goal=1.0),
    ]  # fmt: skip


def missing(nodes: list[Heard], sent: dict[bytes, tuple[int, float]]) -> int:
    return sum(
        payload not in each.at
        for payload, (author, _) in sent.items()
        for number, each in enumerate(nodes)
        if number != author
    )


# The connection alone.


def load_caller(bridge: TrioThread, *, made_with: Setup) -> Guest:
    from agent.control import lean

    lean.prepare()
    import trio

    from agent.control.node import Node

    class Caller(Node):
        async def call(self, peer: str, address: str) -> float:
            """Connect, and return the seconds it took; the connection is closed again."""
            began = trio.current_time()
            link = await self._links.dial(NodeId.parse(peer), [address], {})
            took_s = trio.current_time() - began
            self._links.drop(link)
            return took_s

    node = Caller(bridge, made_with)
    node.commands = {**node.commands, "call": node.call}
    return node


async def connections(count: int) -> list[Row]:
    """Connect again and again: TCP, the private network's key, Noise, yamux."""
    members = [key(0).id, key(1).id]
    target, caller = Heard(0, members).plane, Heard(1, members).plane
    await target.start()
    original = control_host._load
    control_host._load = load_caller
    try:
        await caller.start()
    finally:
        control_host._load = original
    took = []
    for _ in range(count):
        args = (str(members[0]), target.addresses[0])
        took.append(float(await caller._bridge.call("call", *args, timeout_s=5)))
        await asyncio.sleep(0.02)
    await caller.stop()
    await target.stop()
    p50, p95 = percentiles(took)
    limit = "loopback: the network adds about five round trips; exo's users saw 143 and 313 ms"
    return [
        row("control plane: connection alone, p50", p50, "s", limit=limit),
        row("control plane: connection alone, p95", p95, "s", limit=limit),
    ]


def rows(quick: bool) -> list[Row]:
    """Return the figures; some 5 minutes. A quick run takes one, and leaves the burst out."""
    count, idle_s = (20, QUICK_IDLE_S) if quick else (100, IDLE_S)
    keys = [key(n) for n in range(NODES)]
    found = asyncio.run(connections(count))
    random_graph = graph(random.Random(1))
    for name, edges, per_s in (
        ("star", star(), PER_S), ("graph", random_graph, PER_S),
        ("graph", random_graph, BURST_PER_S),
    ):  # fmt: skip
        if quick and per_s == BURST_PER_S:
            continue
        theirs = library.told(keys, edges, count, per_s)
        found += asyncio.run(told(name, edges, count, per_s, idle_s, theirs))
    return found


if __name__ == "__main__":
    arguments = parser(__doc__).parse_args()
    found = rows(arguments.quick)
    finish("gossip", conditions(quick=arguments.quick), found, arguments.json)
