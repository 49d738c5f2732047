"""Walks against a network that is made up here: who is asked, and what is made of the answers."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest
from dht.virtual import run

from agent.discovery import messages
from agent.discovery.contact import Contact
from agent.discovery.lookup import REPLICAS
from agent.discovery.walk import Walker
from agent.identity.keys import NodeId

MESH = b"m" * 32
SIZE, ROUND_TRIP_S = 1000, 0.05


class Made:
    """A thousand nodes of which every tenth lies, and one that knows mostly liars.

    Honest nodes know everyone. A liar names those liars that lie nearest to the target.
    """

    def __init__(self, seed: int, *, lying: bool) -> None:
        rng = random.Random(seed)
        self.target = rng.randbytes(20)
        number = int.from_bytes(self.target, "big")
        made = [NodeId(rng.randbytes(32)) for _ in range(SIZE)]
        self.nodes = [
            Contact(MESH, node, f"20.0.{at >> 8}.{at & 255}", 4001) for at, node in enumerate(made)
        ]
        self.nodes.sort(key=lambda c: c.long_id ^ number)
        self.liars = [c for c in self.nodes if lying and c.ip.endswith("7")]
        far = rng.sample([c for c in self.nodes[500:] if c not in self.liars], 6)
        self.known = [*self.liars[:10], *far]
        self.size = float(SIZE)
        self.asked: list[NodeId] = []

    def walker(self) -> Walker:
        """Return the walker of the one that asks."""
        router = SimpleNamespace(
            nearest=lambda *_: self.known, size=lambda: self.size, known_as=lambda c: c, version=0
        )
        protocol: Any = SimpleNamespace(
            router=router, slow_s=0.2, is_dead=lambda _: False, ask=self._ask
        )
        nothing: Any = None
        return Walker(MESH, b"o" * 20, protocol, nothing, nothing, lambda: 0.0, random.Random(0))

    def _ask(self, node: NodeId, address: Any, question: messages.Question) -> Any:
        self.asked.append(node)
        lies = any(liar.node == node for liar in self.liars)
        named = (self.liars if lies else self.nodes)[: messages.CONTACTS_MAX]
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        answer = (node, messages.Contacts(tuple(c.packed for c in named)))
        loop.call_later(ROUND_TRIP_S, future.set_result, answer)
        return future

    def found(self) -> list[NodeId]:
        """Walk towards the target, and return who was found."""

        async def walk() -> list[NodeId]:
            return [contact.node for contact in await self.walker().nodes(self.target)]

        return run(walk())


@pytest.mark.parametrize("seed", range(4))
def test_liars_that_name_each_other_do_not_end_a_walk(seed: int) -> None:
    mesh = Made(seed, lying=True)
    assert len(mesh.liars) > 50
    assert mesh.found() == [contact.node for contact in mesh.nodes[:REPLICAS]]
    mesh.size = 80.0  # as if it took the liars for the whole mesh
    assert mesh.found() == [contact.node for contact in mesh.liars[:REPLICAS]]


@pytest.mark.parametrize("seed", range(4))
def test_an_honest_walk_asks_no_more_for_that(seed: int) -> None:
    mesh = Made(seed, lying=False)
    assert mesh.found() == [contact.node for contact in mesh.nodes[:REPLICAS]]
    assert len(mesh.asked) <= REPLICAS + 6
