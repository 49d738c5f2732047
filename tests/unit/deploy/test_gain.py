"""A ring that answers is compared with better ones, and moves when that is worth it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from agent.config import Placement
from agent.deploy import gain
from agent.deploy.gain import Gains
from agent.deploy.messages import (
    AskFacts,
    CutFile,
    Facts,
    FetchAhead,
    LinkFacts,
    MeasureLinks,
    Request,
    StageState,
)
from agent.deploy.planning import Own
from agent.deploy.ring import Deployment
from agent.deploy.wish import Wish
from agent.errors import CoveyError, PeerError
from agent.identity.keys import NodeId, NodeKey
from agent.ownership.lease import Token
from agent.placement import moving
from agent.placement.inputs import Model, Node
from agent.placement.results import Plan, Stage

OWN, SLOW, FAST = (NodeKey(bytes([number]) * 32).id for number in (1, 2, 3))
NAMES = {OWN: "box", SLOW: "slow", FAST: "fast"}
MIB = 1 << 20
MODEL = Model((MIB,) * 12, MIB, row_bytes=4096)
FILE = CutFile("00" * 32, MIB, "http://[fd00::1]:1")
LAN = 100e6
LIMIT_S = 5.0


class FakeMesh:
    """Nodes with speeds; whoever is to fetch ahead has it at the second time of asking."""

    def __init__(self) -> None:
        self.speeds = {SLOW: 1e8, FAST: 1e10}
        self.fetches: list[NodeId] = []
        self.leaving: frozenset[NodeId] = frozenset()
        self.refuses: CoveyError | None = None
        self.asked = 0

    def live_workers(self, now: float) -> list[Any]:
        return [
            SimpleNamespace(node_id=node, certificate=SimpleNamespace(name=NAMES[node], tags=()))
            for node in (OWN, *self.speeds)
        ]

    def draining(self) -> frozenset[NodeId]:
        return self.leaving

    async def ask(self, node: NodeId, request: Request, timeout_s: float) -> Any:
        await asyncio.sleep(0)
        if isinstance(request, FetchAhead):
            if self.refuses is not None:
                raise self.refuses
            self.fetches.append(node)
            return StageState(phase="ready" if len(self.fetches) > 1 else "fetching")
        assert isinstance(request, AskFacts | MeasureLinks)
        self.asked += 1
        links = tuple(LinkFacts(str(to), 0.001, bytes_s=LAN) for to in NAMES if to != node)
        return Facts(
            free_bytes=1 << 30, cores=1, decode_bytes_s=self.speeds[node],
            prefill_flop_s=10 * self.speeds[node], links=links,
        )  # fmt: skip


class FakeBuild:
    """An epoch over this node and the slow one."""

    def __init__(self) -> None:
        own = str(OWN)
        self.plan = Plan(
            (Stage(own, "box", 0, 1), Stage(str(SLOW), "slow", 1, 2), Stage(own, "box", 2, 12)), ()
        )
        self.head = SimpleNamespace(pid=0)
        self.missing = 0
        self.carriable = True
        self.asked_for = SimpleNamespace(needs=MODEL, context=0)
        self.cuts: list[Plan] = []

    async def cut_ahead(self, plan: Plan) -> dict[NodeId, CutFile]:
        self.cuts.append(plan)
        return {FAST: FILE}


class Watched:
    """One deployment that is watched, and what was said of it."""

    def __init__(self, **wish: Any) -> None:
        self.mesh = FakeMesh()
        self.build = FakeBuild()
        self.said: list[str] = []
        self.idle: list[str] = []
        fields = {"name": "m", "model": "x", "nodes": 2, "objective": "latency",
                  "author": bytes(32), "generation": 1, "at": 0}  # fmt: skip
        self.deployment = Deployment(
            Wish(**fields | wish), Token(1, bytes(32)), "ab" * 16, phase="ready",
            build=self.build,  # type: ignore[arg-type] # the fake above
        )  # fmt: skip
        self.task: asyncio.Task[None] | None = None

    async def own(self, _: Any) -> Own:
        links = tuple(LinkFacts(str(to), 0.001, bytes_s=LAN) for to in (SLOW, FAST))
        node = Node(str(OWN), "box", 1 << 30, decode_bytes_s=1e10, prefill_flop_s=1e11)
        return Own(node, links)

    def _says(self, deployment: Deployment, words: str) -> None:
        if not self.said or self.said[-1] != words:
            self.said.append(words)

    def begin(self, **settings: Any) -> Gains:
        gains = Gains(Placement(**settings), self.mesh, self.own, self._says)  # type: ignore[arg-type] # as far as it is used
        self.task = asyncio.create_task(
            gains.follow(self.deployment, self.build, "http://head")  # type: ignore[arg-type]
        )
        return gains

    async def until(self, what: Callable[[], bool]) -> None:
        assert self.task is not None
        async with asyncio.timeout(LIMIT_S):
            while not what() and not self.task.done():  # noqa: ASYNC110  # it is polled
                await asyncio.sleep(0.005)
        assert what(), self.said

    async def looks(self, count: int = 3) -> None:
        """Let it look some times more."""
        before = self.mesh.asked
        await self.until(lambda: self.mesh.asked >= before + 2 * count)


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Watched]]:
    made: list[Watched] = []
    for name in ("_SETTLED_S", "_LOOK_S", "_AGAIN_S"):
        monkeypatch.setattr(gain, name, 0.01)
    monkeypatch.setattr(moving, "SEEN_S", 0.03)
    monkeypatch.setattr(gain.ahead, "_POLL_S", 0.01)

    async def until_idle(url: str, within_s: float) -> bool:
        made[-1].idle.append(url)
        return False

    monkeypatch.setattr(gain.answering, "until_idle", until_idle)

    def make(**wish: Any) -> Watched:
        made.append(Watched(**wish))
        return made[-1]

    yield make
    for one in made:
        if one.task is not None:
            one.task.cancel()
            await asyncio.wait([one.task])


async def test_it_moves_once_its_weights_are_there(watched: Callable[..., Watched]) -> None:
    ring = watched()
    ring.begin()
    await ring.until(ring.deployment.again.is_set)
    planned = ring.deployment.planned
    assert planned is not None
    assert planned.nodes == (str(OWN), str(FAST))
    assert ring.build.cuts == [planned]
    assert ring.mesh.fetches == [FAST, FAST]
    assert ring.idle == ["http://head"]
    words = [said.partition(";")[2].strip() for said in ring.said[:-1]]
    assert words == ["it moves if that lasts", "its weights are being fetched", "moves when idle"]
    assert all(said.startswith("a better ring is known: ") for said in ring.said[:-1])
    assert ring.said[-1].startswith("it moved for ")
    assert "fewer ms a token" in ring.deployment.moves


async def test_a_small_gain_is_none(watched: Callable[..., Watched]) -> None:
    ring = watched()
    ring.mesh.speeds = {SLOW: 1e10, FAST: 1.05e10}
    ring.begin()
    await ring.looks()
    assert set(ring.said) <= {"", *(said for said in ring.said if "not worth a move" in said)}
    assert ring.deployment.planned is None


async def test_never_is_never_and_says_what_is_known(watched: Callable[..., Watched]) -> None:
    ring = watched()
    ring.begin(move="never")
    await ring.until(lambda: bool(ring.said) and "placement.move" in ring.said[-1])
    await ring.looks()
    assert ring.mesh.fetches == []
    assert not ring.deployment.again.is_set()


@pytest.mark.parametrize(
    "trouble",
    [
        lambda ring: setattr(ring.build, "missing", 1),
        lambda ring: setattr(ring.mesh, "leaving", frozenset({SLOW})),
        lambda ring: setattr(ring.deployment, "phase", "moving"),
        lambda ring: setattr(ring.build, "carriable", False),
        lambda ring: ring.deployment.losses.add(SLOW, gain.time.monotonic()),
        lambda ring: ring.mesh.speeds.pop(SLOW),
        lambda ring: setattr(ring.mesh, "refuses", PeerError("a disk is full")),
        lambda ring: setattr(
            ring.build, "asked_for", SimpleNamespace(needs=Model((MIB,), MIB, uncut="so"))
        ),
    ],
)
async def test_nothing_moves_in_the_middle_of_trouble(
    watched: Callable[..., Watched], trouble: Callable[[Watched], None]
) -> None:
    ring = watched()
    trouble(ring)
    ring.begin()
    await asyncio.sleep(0.2)
    assert ring.task is not None and not ring.task.done()
    assert not ring.deployment.again.is_set()
    assert ring.deployment.planned is None
    if ring.mesh.refuses is not None:
        assert any("it stays: a disk is full" in said for said in ring.said)


async def test_what_changed_while_weights_came_counts(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = watched()

    async def until_idle(url: str, within_s: float) -> bool:
        ring.mesh.speeds[FAST] = 1e7  # it is busy with something else by now
        return True

    monkeypatch.setattr(gain.answering, "until_idle", until_idle)
    ring.begin()
    await ring.until(lambda: "moves when idle" in " ".join(ring.said))
    await ring.looks()
    assert ring.deployment.planned is None
    assert ring.said[-1] == ""


async def test_a_wish_for_nodes_is_kept_to(watched: Callable[..., Watched]) -> None:
    ring = watched(nodes=None, only=("x",))  # nobody has that tag, so nothing can be planned
    ring.begin()
    await asyncio.sleep(0.1)
    assert ring.deployment.planned is None
    other = watched(engine="rpc")
    other.begin()
    assert other.task is not None
    await asyncio.wait([other.task], timeout=LIMIT_S)
    assert other.mesh.asked == 0


async def test_a_node_that_comes_is_looked_at_at_once(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gain, "_LOOK_S", 60.0)
    ring = watched()
    del ring.mesh.speeds[FAST]
    gains = ring.begin()
    await ring.until(lambda: ring.mesh.asked == 1)
    await asyncio.sleep(0.05)
    ring.mesh.speeds[FAST] = 1e10
    gains.came()
    await ring.until(ring.deployment.again.is_set)
