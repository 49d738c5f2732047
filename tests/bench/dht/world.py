"""A small simulated mesh for tests: whole nodes with their own keys, joined as the test says.

    @virtual
    async def test_something(world: World) -> None:
        await world.add()
        await world.add(0, publish=True)

Nothing waits: time jumps from timer to timer (see `virtual.py`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from agent.discovery.node import Discovery
from agent.identity.keys import NodeId, NodeKey
from dht.root import Root, key_of
from dht.virtual import Host, Nat, Network, run

EPOCH = 1_800_000_000.0
PORT = 4001


class World:
    """A simulated network and the nodes in it, by number."""

    def __init__(self) -> None:
        self.network = Network(random.Random(1))
        self.root = Root("world")
        self.loop = asyncio.get_running_loop()
        self.nodes: list[Discovery] = []
        self.keys: list[NodeKey] = []
        self.hosts: list[Host] = []

    def clock(self) -> float:
        return EPOCH + self.loop.time()

    async def add(
        self,
        *via: int | str,
        address: str = "",
        nat: Nat | None = None,
        publish: bool = False,
        number: int | None = None,
        **options: Any,
    ) -> Discovery:
        """Start a node, and let it join via others (numbers) or addresses."""
        name = len(self.nodes) if number is None else number
        key = key_of(f"node {name}")
        host = self.network.host(address or f"20.0.0.{len(self.nodes)}", nat)
        root = self.root
        node = Discovery(
            key,
            root.mesh_id,
            options.pop("network_keys", root.keys),
            options.pop("verify", root.verify),
            (host.address, PORT),
            options.pop("certificate", None) or root.certify(key.id),
            clock=self.clock,
            ports=host,
            rng=random.Random(name),
            **options,
        )
        await node.start()
        self.nodes.append(node)
        self.keys.append(key)
        self.hosts.append(host)
        endpoints = [one if isinstance(one, str) else self.endpoint(one) for one in via]
        if endpoints:
            await node.bootstrap(endpoints)
        if publish:
            await node.publish_member(root.record(key, name + 1))
        return node

    def endpoint(self, number: int) -> str:
        return f"{self.hosts[number].address}:{PORT}"

    def id(self, number: int) -> NodeId:
        return self.keys[number].id

    def kill(self, number: int) -> None:
        """End a node as a power cut does."""
        parts = self.nodes[number]._running()
        parts.maintenance.cancel()
        parts.rejoin.close()
        parts.protocol.transport.abort()
        parts.protocol._questions.close()
        self.nodes[number]._parts = None

    def knows(self, number: int) -> set[int]:
        """Return who is in a node's routing table."""
        numbers = {key.id: n for n, key in enumerate(self.keys)}
        return {numbers[node] for node, _ in self.nodes[number].contacts()}

    def count(self, name: str) -> int:
        """Return a counter's sum over all nodes."""
        return sum(node.counters.get(name, 0) for node in self.nodes)


def virtual(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    """Run a test on virtual time, and stop its nodes."""

    async def main() -> None:
        world = World()
        await test(world)
        await asyncio.gather(*(node.stop() for node in world.nodes))

    def run_it() -> None:
        run(main())

    run_it.__name__ = test.__name__
    return run_it
