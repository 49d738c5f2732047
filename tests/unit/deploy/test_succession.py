"""Who may be head is found once, kept while nothing changes, and known to who owns it next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agent.deploy import succession
from agent.deploy.messages import Facts, RingHere
from agent.deploy.planning import Own
from agent.deploy.succession import Succession
from agent.deploy.wish import Wish
from agent.errors import PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.models import bundled
from agent.placement.inputs import Node

OWN, DEN, ATTIC = (NodeKey(bytes([number]) * 32).id for number in (1, 2, 3))
ID = "ab" * 32
WISH = Wish(name="m", model="mini", model_id=ID, author=bytes(32), generation=1, at=0)


class World:
    """Workers, who has the model, and what this node owns."""

    def __init__(self) -> None:
        self.workers = [OWN, DEN, ATTIC]
        self.having: frozenset[NodeId] = frozenset({DEN})
        self.owned = [(WISH, "m", "")]
        self.here: dict[NodeId, tuple[RingHere, ...]] = {}
        self.own_rings: tuple[RingHere, ...] = ()
        self.asked: list[NodeId] = []
        self.questions = self.changes = 0
        self.news = asyncio.Event()

    # the mesh

    def live_workers(self, now: float) -> list[Any]:
        return [
            SimpleNamespace(node_id=node, certificate=SimpleNamespace(name=str(node)[-4:], tags=()))
            for node in self.workers
        ]

    def draining(self) -> frozenset[NodeId]:
        return frozenset()

    async def ask(self, node: NodeId, request: Any, timeout_s: float) -> Facts:
        self.asked.append(node)
        rings = self.here.get(node, ()) if request.deployment else ()
        return Facts(free_bytes=1 << 30, cores=1, rings=rings)

    # the stores

    def path(self, model_id: str) -> None:
        return None

    async def holders(self, model_id: str) -> frozenset[NodeId]:
        self.questions += 1
        return self.having

    async def header(self, model_id: str) -> Path:
        return bundled.path()

    # this node

    async def own(self) -> Own:
        return Own(Node(str(OWN), "own", 1 << 30))

    def changed(self) -> None:
        self.changes += 1


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - a state, not an event
            await asyncio.sleep(0.005)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(succession, "_POLL_S", 0.01)
    monkeypatch.setattr(succession, "_AGAIN_S", 0.02)
    return World()


def made(world: World) -> Succession:
    return Succession(
        world, world.own, lambda: world.owned, world, Path("/none"), world.changed,  # type: ignore[arg-type] # as far as it is used
        lambda _: world.own_rings,
    )  # fmt: skip


@pytest.fixture
async def order(world: World) -> AsyncIterator[Succession]:
    found = made(world)
    task = asyncio.create_task(found.follow())
    yield found
    task.cancel()
    await asyncio.wait([task])


async def test_what_was_found_is_kept_until_a_worker_comes_or_goes(
    world: World, order: Succession
) -> None:
    assert order.heads(WISH, "m") == (), "nobody is, until it is known"
    await until(lambda: order.heads(WISH, "m") == (DEN,))
    await asyncio.sleep(0.1)
    assert (world.questions, world.changes) == (1, 1)
    world.having = frozenset({DEN, ATTIC})
    world.workers = [OWN, ATTIC]
    await until(lambda: order.heads(WISH, "m") == (ATTIC, OWN))
    assert world.questions == 2
    order.look_soon()
    await until(lambda: world.questions == 3)


async def test_files_and_what_all_have_are_no_business_of_it(world: World) -> None:
    plain = Wish(name="p", model="covey-mini", author=bytes(32), generation=1, at=0)
    file = Wish(name="f", model="/x", source=bytes(32), author=bytes(32), generation=1, at=0)
    world.owned = [(plain, "m", ""), (file, "m", "")]
    order = made(world)
    assert order.heads(plain, "m") is None
    assert order.heads(file, "m") is None
    order._begin()
    await asyncio.sleep(0)
    assert (world.questions, order._orders) == (0, {})


async def test_where_nobody_has_it_that_is_said_until_somebody_has(
    world: World, order: Succession
) -> None:
    world.having = frozenset()
    await until(lambda: order.error("m") is not None)
    error = order.error("m")
    assert isinstance(error, PeerError)
    assert error.message == f"no member that is there has the model mini ({ID[:12]}…)"
    changes = world.changes
    await until(lambda: world.questions > 3)
    assert world.changes == changes, "the same again is no news"
    world.having = frozenset({ATTIC})
    await until(lambda: order.heads(WISH, "m") == (ATTIC,))
    assert order.error("m") is None


async def test_it_is_known_on_for_a_while_when_an_owner_falls_silent(
    world: World, order: Succession, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: order.heads(WISH, "m") == (DEN,))
    world.owned = []
    await asyncio.sleep(0.1)
    assert order.heads(WISH, "m") == (DEN,)
    monkeypatch.setattr(succession, "_KEPT_S", 0.0)
    await until(lambda: order.heads(WISH, "m") == ())
    newer = Wish(name="m", model="mini", model_id=ID, author=bytes(32), generation=2, at=0)
    world.owned = [(newer, "m", "")]
    await until(lambda: order.heads(newer, "m") == (DEN,))
    assert order.heads(WISH, "m") == (), "another wish"


async def test_each_ring_has_an_order_without_the_nodes_of_the_others(
    world: World, order: Succession
) -> None:
    two = msgspec.structs.replace(WISH, rings=2)
    world.having = frozenset({DEN, ATTIC})
    world.here = {DEN: (RingHere(1, head=True, nodes=(str(DEN),)),)}
    world.owned = [(two, "m", ""), (two, "m/2", "")]
    await until(lambda: order.heads(two, "m/2") == (ATTIC, OWN))
    await until(lambda: DEN in (order.heads(two, "m") or ()))
    world.here |= {ATTIC: (RingHere(3, nodes=(str(ATTIC),)),)}
    order.look_soon()
    await until(lambda: order.heads(two, "m/2") == (OWN,))


async def test_this_node_is_left_out_too_where_another_ring_has_it(
    world: World, order: Succession
) -> None:
    """Also if it alone has the model: another one is head then, and fetches it from here."""
    two = msgspec.structs.replace(WISH, rings=2)
    world.having = frozenset({OWN})
    world.owned = [(two, "m/2", "")]
    await until(lambda: order.heads(two, "m/2") == (OWN,))
    world.own_rings = (RingHere(1, head=True, nodes=(str(OWN),)),)
    order.refused("m/2", frozenset({OWN}))
    await until(lambda: set(order.heads(two, "m/2") or ()) == {DEN, ATTIC})


async def test_a_head_that_another_ring_has_is_left_out_though_nobody_owns_the_ring_for_a_moment(
    world: World, order: Succession
) -> None:
    two = msgspec.structs.replace(WISH, rings=2)
    world.owned = [(two, "m/2", "")]
    await until(lambda: order.heads(two, "m/2") == (DEN,))
    world.owned = []
    asked = world.questions
    order.refused("m/2", frozenset({DEN}))
    await until(lambda: world.questions > asked + 1)  # it does not say yet that it has another ring
    assert order.heads(two, "m/2") == (DEN,)
    world.here = {DEN: (RingHere(1, head=True, nodes=(str(DEN),)),)}
    await until(lambda: DEN not in order.heads(two, "m/2"))
    assert order.heads(two, "m/2")
