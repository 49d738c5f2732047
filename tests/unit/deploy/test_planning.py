"""Which nodes a ring is planned over: who is asked, who is left out, and when fewer will do."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agent.deploy import planning
from agent.deploy.messages import AskFacts, Facts
from agent.deploy.planning import Planning
from agent.deploy.wish import Wish
from agent.errors import ModelError, PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.placement.plan import Candidate, ModelSizes

OWN, DEN, ATTIC = (NodeKey(bytes([number]) * 32).id for number in (1, 2, 3))
NAMES = {DEN: "den", ATTIC: "attic"}
GIB = 1 << 30
SIZES = ModelSizes((1 << 20,) * 12, 1 << 20)


class FakeMesh:
    """Workers that say what they can hold, or nothing."""

    def __init__(self, **free_bytes: int | None) -> None:
        self.free = {node: free_bytes[name] for node, name in NAMES.items() if name in free_bytes}
        self.patience: list[float] = []
        self.draining: set[NodeId] = set()
        self.rings: set[str] = set()

    def live_workers(self, now: float) -> list[Any]:
        return [
            SimpleNamespace(node_id=node, certificate=SimpleNamespace(name=NAMES.get(node, "box")))
            for node in (OWN, *self.free)
        ]

    async def ask(self, node: NodeId, request: AskFacts, timeout_s: float) -> Facts:
        self.patience.append(timeout_s)
        self.rings.add(request.ring)
        free = self.free[node]
        if free is None:
            raise PeerError("it does not answer")
        return Facts(free_bytes=free, cores=1, draining=node in self.draining)


def made(mesh: FakeMesh, nodes: int | None = None, **changes: Any) -> Planning:
    wish = Wish(name="m", model="x", nodes=nodes, author=bytes(32), generation=1, at=0)
    settings: dict[str, Any] = {"waits": True, "without": frozenset(), "fewer": False} | changes
    return Planning(wish, Candidate(str(OWN), "box", GIB), mesh, lambda *_: None, **settings)  # type: ignore[arg-type] # as far as it is used


async def nodes_of(found: Planning, sizes: ModelSizes = SIZES) -> set[str]:
    return {stage.name for stage in (await found.plan(sizes)).stages}


async def test_who_does_not_answer_is_left_out_and_all_others_are_asked_at_once() -> None:
    mesh = FakeMesh(den=None, attic=GIB)
    assert await nodes_of(made(mesh, 2)) == {"box", "attic"}
    assert mesh.patience == [3.0, 3.0]


async def test_while_answers_wait_nobody_is_waited_for_long() -> None:
    mesh = FakeMesh(den=GIB, attic=None)
    found = made(mesh, 3, waits=False, fewer=True)
    assert await nodes_of(found) == {"box", "den"}
    assert max(mesh.patience) < 1.0
    assert found.missing == 1
    assert "3 nodes were asked for, and 1 of them" in found.absent[0]


async def test_a_new_wish_waits_for_its_nodes_and_is_not_built_over_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "_POLL_S", 0.0)
    mesh = FakeMesh(den=GIB, attic=None)
    waiting = asyncio.create_task(nodes_of(made(mesh, 3)))
    for _ in range(20):
        await asyncio.sleep(0)
    mesh.free[ATTIC] = GIB
    assert await waiting == {"box", "den", "attic"}
    monkeypatch.setattr(planning, "_NODES_TIMEOUT_S", 0.0)
    mesh.free[ATTIC] = None
    found = made(mesh, 3)
    with pytest.raises(PeerError, match="3 nodes was asked for, and 2 can be reached"):
        await found.plan(SIZES)
    assert (found.missing, found.absent) == (0, ())


async def test_who_lost_stages_is_left_out_unless_it_cannot_do_without() -> None:
    mesh = FakeMesh(den=2 * GIB, attic=GIB)
    without = frozenset({DEN})
    assert await nodes_of(made(mesh, 2, without=without)) == {"box", "attic"}
    large = ModelSizes((200 << 20,) * 12, 1 << 20)
    assert await nodes_of(made(mesh, None, without=without), large) == {"box", "den", "attic"}
    assert await nodes_of(made(mesh, 3, without=without)) == {"box", "den", "attic"}
    # Over fewer nodes it can do without.
    found = made(mesh, 3, without=without, fewer=True)
    assert await nodes_of(found) == {"box", "attic"}
    assert found.missing == 1


async def test_what_fits_nowhere_is_said_of_all_nodes() -> None:
    huge = ModelSizes((900 << 20,) * 12, 1 << 20)
    with pytest.raises(ModelError, match="the nodes have 4096 MiB free"):
        await made(FakeMesh(den=2 * GIB, attic=GIB), without=frozenset({DEN})).plan(huge)


async def test_who_is_draining_is_left_out_and_that_is_said() -> None:
    mesh = FakeMesh(den=4 * GIB, attic=GIB)
    mesh.draining = {DEN}
    found = made(mesh, 2)
    assert await nodes_of(found) == {"box", "attic"}
    assert found.absent == ("den is draining",)
    found = made(mesh, 3, waits=False, fewer=True)
    assert await nodes_of(found) == {"box", "attic"}
    assert found.absent[0] == "den is draining"
    assert "3 nodes were asked for, and 1 of them" in found.absent[1]
    assert mesh.rings == {""}


async def test_a_new_ring_is_never_placed_on_who_is_draining(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "_NODES_TIMEOUT_S", 0.0)
    mesh = FakeMesh(den=4 * GIB, attic=GIB)
    mesh.draining = {DEN}
    with pytest.raises(PeerError, match="3 nodes was asked for, and 2 can be reached"):
        await made(mesh, 3).plan(SIZES)
    large = ModelSizes((200 << 20,) * 12, 1 << 20)
    with pytest.raises(ModelError, match="the nodes have 2048 MiB free"):
        await made(mesh).plan(large)


async def test_a_ring_that_was_there_stays_only_if_it_cannot_do_without() -> None:
    mesh = FakeMesh(den=4 * GIB, attic=GIB)
    mesh.draining = {DEN}
    large = ModelSizes((200 << 20,) * 12, 1 << 20)
    kept = frozenset({DEN})
    assert "den" in await nodes_of(made(mesh, kept=kept, ring="ab", fewer=True), large)
    assert "den" not in await nodes_of(made(mesh, kept=kept, ring="ab", fewer=True))
    assert mesh.rings == {"ab"}, "what its own stages hold counts as free"
    with pytest.raises(ModelError):
        await made(mesh, kept=frozenset({ATTIC}), fewer=True).plan(large)
