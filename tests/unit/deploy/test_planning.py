"""Which nodes a ring is planned over: who is asked, left out, measured, and when fewer will do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest

from agent.deploy import planning
from agent.deploy.messages import AskFacts, Facts, LinkFacts, MeasureLinks, Request, RingHere
from agent.deploy.planning import Own, Planning
from agent.deploy.wish import Wish
from agent.errors import CoveyError, ModelError, PeerError, UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.placement.inputs import Model, Node

OWN, DEN, ATTIC = (NodeKey(bytes([number]) * 32).id for number in (1, 2, 3))
NAMES = {DEN: "den", ATTIC: "attic"}
GIB, MIB = 1 << 30, 1 << 20
SMALL = Model((MIB,) * 12, MIB)
# Too large for one of the nodes below.
LARGE = Model((100 * MIB,) * 12, MIB, row_bytes=4096)
LAN, FAR = 100e6, 1e6


class FakeMesh:
    """Workers that say what they can hold, or nothing; and what their links carry once measured."""

    def __init__(self, **free_bytes: int | None) -> None:
        self.free = {node: free_bytes[name] for node, name in NAMES.items() if name in free_bytes}
        self.tags: dict[NodeId, tuple[str, ...]] = {}
        self.speeds: dict[NodeId, float] = {}
        self.carries: dict[tuple[NodeId, NodeId], float] = {}
        self.patience: list[float] = []
        self.slow: set[NodeId] = set()
        self.measured: list[tuple[NodeId, NodeId]] = []
        self.leaving: set[NodeId] = set()
        self.rings: set[str] = set()
        self.deployments: set[str] = set()
        self.here: dict[NodeId, tuple[RingHere, ...]] = {}
        self.own_drains = self.own_idle = False

    def draining(self) -> frozenset[NodeId]:
        return frozenset({OWN} if self.own_drains else ())

    def live_workers(self, now: float) -> list[Any]:
        return [
            SimpleNamespace(
                node_id=node,
                certificate=SimpleNamespace(
                    name=NAMES.get(node, "box"), tags=self.tags.get(node, ())
                ),
            )
            for node in ((*self.free,) if self.own_idle else (OWN, *self.free))
        ]

    def link(self, node: NodeId, to: NodeId) -> LinkFacts:
        self.measured.append((node, to))
        return LinkFacts(str(to), 0.001, bytes_s=self.carries.get((node, to), 0.0))

    async def own_links(self, nodes: Sequence[NodeId]) -> list[LinkFacts]:
        return [self.link(OWN, node) for node in nodes]

    async def ask(self, node: NodeId, request: Request, timeout_s: float) -> Facts:
        free = self.free[node]
        if isinstance(request, MeasureLinks):
            links = tuple(self.link(node, NodeId.parse(to)) for to in request.to)
            return Facts(free_bytes=free or 0, cores=1, links=links)
        self.patience.append(timeout_s)
        if node in self.slow:
            await asyncio.sleep(60)
        if free is None:
            raise PeerError("it does not answer")
        assert isinstance(request, AskFacts)
        self.rings.add(request.ring)
        self.deployments.add(request.deployment)
        speed = self.speeds.get(node, 0.0)
        return Facts(
            free_bytes=free, cores=1, decode_bytes_s=speed, prefill_flop_s=10 * speed,
            draining=node in self.leaving,
            rings=self.here.get(node, ()) if request.deployment else (),
        )  # fmt: skip


def made(mesh: FakeMesh, nodes: int | None = None, **changes: Any) -> Planning:
    settings = {
        name: changes.pop(name)
        for name in ("waits", "without", "fewer", "kept", "ring", "number", "heads")
        if name in changes
    }
    measure = mesh.own_links if mesh.carries else None
    own = Own(Node(str(OWN), "box", GIB), (), measure, changes.pop("doubted", frozenset()))
    wish = Wish(name="m", model="x", nodes=nodes, author=bytes(32), generation=1, at=0, **changes)
    return Planning(wish, own, mesh, lambda *_: None, **settings)  # type: ignore[arg-type] # as far as it is used


async def nodes_of(found: Planning, model: Model = SMALL) -> set[str]:
    return {stage.name for stage in (await found.plan(model, 0)).stages}


async def test_who_does_not_answer_is_left_out_and_all_others_are_asked_at_once() -> None:
    mesh = FakeMesh(den=None, attic=GIB)
    assert await nodes_of(made(mesh, 2)) == {"box", "attic"}
    assert mesh.patience == [3.0, 3.0]


async def test_what_fits_on_this_node_stays_here_and_a_model_in_one_piece_asks_nobody() -> None:
    mesh = FakeMesh(den=GIB, attic=GIB)
    assert await nodes_of(made(mesh)) == {"box"}
    assert len(mesh.patience) == 2
    whole = Model((MIB,) * 12, MIB, uncut="it is for embeddings")
    assert await nodes_of(made(mesh), whole) == {"box"}
    assert len(mesh.patience) == 2


async def test_while_answers_wait_nobody_is_waited_for_long() -> None:
    mesh = FakeMesh(den=GIB, attic=None)
    found = made(mesh, 3, waits=False, fewer=True)
    assert await nodes_of(found) == {"box", "den"}
    assert max(mesh.patience) < 1.0
    assert found.missing == 1
    assert "3 nodes were asked for, and 1 of them" in found.absent[0]


async def test_who_may_be_dead_has_a_moment_and_the_others_all_their_time() -> None:
    mesh = FakeMesh(den=GIB, attic=GIB)
    mesh.slow = {DEN}
    settings = {"waits": False, "fewer": True, "doubted": frozenset({DEN})}
    assert await nodes_of(made(mesh, 3, **settings)) == {"box", "attic"}
    mesh.slow = set()
    assert await nodes_of(made(mesh, 3, **settings)) == {"box", "den", "attic"}


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
    with pytest.raises(PeerError, match="3 nodes"):
        await found.plan(SMALL, 0)
    assert (found.missing, found.absent) == (0, ())
    with pytest.raises(PeerError, match="3 nodes"):
        await made(mesh, least=3).plan(SMALL, 0)


async def test_who_lost_stages_is_left_out_unless_it_cannot_do_without() -> None:
    mesh = FakeMesh(den=2 * GIB, attic=GIB)
    without = frozenset({DEN})
    assert await nodes_of(made(mesh, 2, without=without)) == {"box", "attic"}
    assert await nodes_of(made(mesh, 3, without=without)) == {"box", "den", "attic"}
    larger = Model((200 * MIB,) * 12, MIB)
    assert "den" in await nodes_of(made(mesh, without=without), larger)
    # Over fewer nodes it can do without.
    found = made(mesh, 3, without=without, fewer=True)
    assert await nodes_of(found) == {"box", "attic"}
    assert found.missing == 1


async def test_what_fits_nowhere_is_said_of_all_nodes() -> None:
    huge = Model((900 * MIB,) * 12, MIB)
    with pytest.raises(ModelError, match="MiB"):
        await made(FakeMesh(den=2 * GIB, attic=GIB), without=frozenset({DEN})).plan(huge, 0)


async def test_who_is_draining_is_left_out_and_that_is_said() -> None:
    mesh = FakeMesh(den=4 * GIB, attic=GIB)
    mesh.leaving = {DEN}
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
    mesh.leaving = {DEN}
    with pytest.raises(PeerError):
        await nodes_of(made(mesh, 3))
    with pytest.raises(ModelError):
        await nodes_of(made(mesh), Model((200 * MIB,) * 12, MIB))


async def test_a_ring_that_was_there_stays_only_if_it_cannot_do_without() -> None:
    mesh = FakeMesh(den=4 * GIB, attic=GIB)
    mesh.leaving = {DEN}
    large = Model((200 * MIB,) * 12, MIB)
    kept = frozenset({DEN})
    assert "den" in await nodes_of(made(mesh, kept=kept, ring="ab", fewer=True), large)
    assert "den" not in await nodes_of(made(mesh, kept=kept, ring="ab", fewer=True))
    assert mesh.rings == {"ab"}, "what its own stages hold counts as free"
    with pytest.raises(ModelError):
        await made(mesh, kept=frozenset({ATTIC}), fewer=True).plan(large, 0)


async def test_speeds_that_were_measured_decide() -> None:
    mesh = FakeMesh(den=2 * GIB, attic=2 * GIB)
    mesh.speeds = {DEN: 4e9, ATTIC: 40e9}
    assert await nodes_of(made(mesh), LARGE) == {"box", "attic"}
    mesh.speeds = {DEN: 40e9, ATTIC: 4e9}
    assert await nodes_of(made(mesh), LARGE) == {"box", "den"}


async def test_tags_say_where_it_may_run() -> None:
    mesh = FakeMesh(den=2 * GIB, attic=2 * GIB)
    mesh.tags = {ATTIC: ("loud",)}
    assert await nodes_of(made(mesh, never=("loud",)), LARGE) == {"box", "den"}
    with pytest.raises((UsageError, PeerError, ModelError)):
        await made(mesh, 2, only=("loud",)).plan(LARGE, 0)  # the head has no such tag


async def test_links_on_which_a_plan_rests_are_measured_and_it_changes_its_mind() -> None:
    mesh = FakeMesh(den=2 * GIB, attic=2 * GIB)
    mesh.speeds = {DEN: 9e9, ATTIC: 8e9}
    for node, rate in ((DEN, FAR), (ATTIC, LAN)):
        mesh.carries |= {(OWN, node): rate, (node, OWN): rate}
    assert await nodes_of(made(mesh), Model((100 * MIB,) * 12, MIB, row_bytes=1 << 20)) == {
        "box", "attic",
    }  # fmt: skip
    assert mesh.measured[:2] == [(OWN, DEN), (DEN, OWN)]
    assert set(mesh.measured[2:]) == {(OWN, ATTIC), (ATTIC, OWN)}


async def test_nothing_is_measured_while_answers_wait_or_where_nobody_can() -> None:
    mesh = FakeMesh(den=2 * GIB)
    await made(mesh).plan(LARGE, 0)  # no link can be measured: `carries` has none
    mesh.carries = {(OWN, DEN): LAN, (DEN, OWN): LAN}
    mesh.measured.clear()
    await made(mesh, waits=False).plan(LARGE, 0)
    assert mesh.measured == []
    await made(mesh).plan(LARGE, 0)
    assert sorted(mesh.measured) == sorted([(OWN, DEN), (DEN, OWN)])


async def test_a_ring_of_several_keeps_off_the_nodes_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "_NODES_TIMEOUT_S", 0.0)
    mesh = FakeMesh(den=2 * GIB, attic=2 * GIB)
    mesh.here = {DEN: (RingHere(2, head=True, nodes=(str(DEN),)),)}
    found = made(mesh, 2, rings=2, number=1)
    assert await nodes_of(found) == {"box", "attic"}
    assert found.absent == ("den is in ring 2",)
    # Who is in another ring is not waited for, and missed.
    found = made(mesh, 3, rings=2, number=1, fewer=True, kept=frozenset({OWN}))
    assert await nodes_of(found) == {"box", "attic"}
    assert found.missing == 1
    mesh.here |= {ATTIC: (RingHere(3, nodes=(str(ATTIC),)),)}
    with pytest.raises(ModelError, match="den is in ring 2; attic is in ring 3"):
        await made(mesh, rings=3, number=1).plan(LARGE, 0)


async def test_a_wish_for_one_ring_asks_nobody_of_others() -> None:
    mesh = FakeMesh(den=GIB)
    await made(mesh).plan(SMALL, 0)
    assert mesh.deployments == {""}
    await made(mesh, rings=2).plan(SMALL, 0)
    assert mesh.deployments == {"", "m"}


async def test_ways_are_over_workers_that_stay_and_rest_on_measured_links() -> None:
    mesh = FakeMesh(den=2 * GIB, attic=2 * GIB)
    mesh.carries = dict.fromkeys(permutations((OWN, DEN, ATTIC), 2), LAN)
    best, *others = await made(mesh).ways(SMALL, 0, 2)
    assert best[0].nodes[0] == str(OWN)
    assert sorted(len(way) for way in others) == [1, 3]
    nodes = [node for plan in best for node in plan.nodes]
    assert len(nodes) == len(set(nodes))
    # This node has no part where it is no worker, nor has one that drains.
    mesh.own_idle = True
    (alone,), *_ = await made(mesh, 1).ways(SMALL, 0, 1)
    assert str(OWN) not in alone.nodes
    mesh.own_idle = False
    mesh.leaving = {DEN}
    with pytest.raises(CoveyError):
        await made(mesh).ways(SMALL, 0, 3)
    best, *_ = await made(mesh).ways(SMALL, 0, None)
    assert {node for plan in best for node in plan.nodes} <= {str(OWN), str(ATTIC)}
    # A file that lies on one node alone makes one ring.
    best, *_ = await made(mesh, source=OWN.ed25519).ways(SMALL, 0, None)
    assert len(best) == 1
    # Of a stored model those are heads that may be.
    mesh.leaving = set()
    both, *_ = await made(mesh, heads=frozenset({DEN, ATTIC})).ways(SMALL, 0, 2)
    assert {plan.nodes[0] for plan in both} == {str(DEN), str(ATTIC)}
    # A ring that has none yet is to begin where no other one is.
    mesh.here = {DEN: (RingHere(1, head=True, nodes=(str(DEN),)),)}
    order = await made(mesh, rings=2, number=2, fewer=True).succession(
        SMALL, 0, [frozenset({DEN, ATTIC})]
    )
    assert order[0] == ATTIC
    assert DEN not in order


async def test_any_of_some_may_be_the_head_and_who_only_plans_is_not_in_it() -> None:
    mesh = FakeMesh(den=GIB, attic=GIB)
    mesh.speeds = {DEN: 4e9, ATTIC: 40e9}
    mesh.own_idle = True
    both = frozenset({DEN, ATTIC})
    [stage] = (await made(mesh, heads=both).plan(SMALL, 0)).stages
    assert stage.name == "attic"
    stages = (await made(mesh, 2, heads=frozenset({DEN})).plan(SMALL, 0)).stages
    assert [stage.name for stage in stages] == ["den", "attic", "den"]
    whole = Model((MIB,) * 12, MIB, uncut="it is for embeddings")
    [stage] = (await made(mesh, heads=both).plan(whole, 0)).stages
    assert stage.name == "attic"


async def order(
    mesh: FakeMesh, model: Model, *holders: frozenset[NodeId], **more: Any
) -> list[Any]:
    return await made(mesh, fewer=True, **more).succession(model, 0, holders)


async def test_who_has_the_model_is_head_in_the_order_of_what_each_would_give() -> None:
    mesh = FakeMesh(den=2 * GIB, attic=2 * GIB)
    mesh.speeds = {DEN: 4e9, ATTIC: 40e9}
    both = frozenset({DEN, ATTIC})
    assert await order(mesh, LARGE, both) == [ATTIC, DEN]
    assert await order(mesh, LARGE, both, nodes=2) == [ATTIC, DEN]
    # Who has all its files comes before who has one of them; the last one is fetched from nobody.
    assert await order(mesh, LARGE, both, frozenset({DEN})) == [DEN]
    assert await order(mesh, LARGE, both, frozenset({DEN, OWN})) == [DEN, ATTIC]
    assert await order(mesh, LARGE, both, never=("x",)) == [ATTIC, DEN]


async def test_where_nobody_who_has_it_can_be_head_others_fetch_it() -> None:
    mesh = FakeMesh(den=2 * GIB, attic=100 * MIB)
    gate = NodeKey(bytes([9]) * 32).id  # has it, and is no worker
    assert await order(mesh, LARGE, frozenset({gate})) == [DEN]
    large_head = Model((MIB,) * 12, 300 * MIB)
    assert await order(mesh, large_head, frozenset({ATTIC})) == [DEN, OWN]
    # The one that would be head after the only one that has it has nobody to fetch it from.
    assert await order(mesh, LARGE, frozenset({DEN})) == [DEN]


async def test_who_drains_or_is_no_worker_is_no_head_and_a_model_too_large_is_somebodys() -> None:
    mesh = FakeMesh(den=GIB, attic=2 * GIB)
    all_three = frozenset({OWN, DEN, ATTIC})
    mesh.leaving = {DEN}
    mesh.own_drains = True
    assert await order(mesh, SMALL, all_three) == [ATTIC]
    mesh.leaving = set()
    mesh.own_drains, mesh.own_idle = False, True
    assert set(await order(mesh, SMALL, all_three)) == {DEN, ATTIC}
    huge = Model((900 * MIB,) * 12, MIB)
    assert await order(mesh, huge, all_three) == [ATTIC], "as a head it says what is missing"
    assert await order(mesh, huge, frozenset({DEN})) == [DEN]
    mesh.free = {}
    assert await order(mesh, SMALL, all_three) == []
