"""The head's side: what is kept, adopted, tried again, given up, drained and ended."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import config
from agent.deploy import regain, rings
from agent.deploy.carried import Carried
from agent.deploy.hardware import Hardware
from agent.deploy.heads import Head
from agent.deploy.messages import Facts, HeadState
from agent.deploy.wish import Wish
from agent.errors import CoveyError, EngineError, ModelError, PeerError, UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.models import bundled
from agent.ownership.lease import Token
from agent.ownership.owner import Phase
from agent.placement.results import Plan, Stage

OWN = NodeKey(bytes(32)).id
FIRST, SECOND = Token(1, bytes([1]) * 32), Token(2, bytes([2]) * 32)


class FakeHead:
    """A head engine that ends when told to."""

    def __init__(self) -> None:
        self.http_port, self.pid = 7101, 0
        self.alive = False
        self.is_stopped = False
        self.revive()

    def revive(self) -> None:
        self.end: asyncio.Future[CoveyError | None] = asyncio.get_running_loop().create_future()

    async def stop(self, *, grace_s: float = 8.0) -> None:
        self.is_stopped = True

    async def wait_ended(self) -> CoveyError | None:
        return await self.end


class FakeBuild:
    """Stands for `Build`: each epoch takes the next outcome of the script."""

    script: list[CoveyError | None]
    made: list["FakeBuild"]
    partner: NodeId | None = None
    lost: NodeId | None = None
    missing = 0
    carriable = True
    unfit: list[CoveyError]

    def __init__(self, wish: Wish, ring: str, epoch: int, **more: Any) -> None:
        self.wish, self.ring, self.epoch = wish, ring, epoch
        self.carried: Carried | None = more["carried"]
        self.without, self.fewer, self.kept = more["without"], more["fewer"], more["kept"]
        self.planned: Plan | None = more["plan"]
        self.doubted: frozenset[NodeId] = more["own"].doubted
        self.token: Callable[[], Token] = more["token"]
        self.context, self.reasons = 64, ("rows leave box as f32",)
        self.plan: Plan | None = None
        if type(self).partner is not None:
            self.plan = Plan((Stage(str(type(self).partner), "partner", 0, 1),), ())
        self.placed: tuple[Any, ...] = ()
        self.runs_on: dict[str, str] = {}
        self.head: Any = self.carried.engine if self.carried else None
        self.carries = self.carried is not None
        self.is_down = False
        type(self).made.append(self)

    async def up(self) -> FakeHead:
        outcome = type(self).script.pop(0)
        if outcome is not None:
            raise outcome
        if self.head is None:
            self.head = FakeHead()
        else:
            self.head.revive()
        found: FakeHead = self.head
        return found

    async def check_without_draining(self) -> None:
        for _ in range(9):  # to ask all nodes takes a moment
            await asyncio.sleep(0)
        if type(self).unfit:
            raise type(self).unfit.pop(0)

    def carry(self) -> Carried | None:
        if not type(self).carriable:
            return None
        if self.head is None or not self.head.alive:
            return None
        head, self.head = self.head, None
        return Carried(head, frozenset(), type(self).lost)

    async def down(self) -> None:
        self.is_down = True
        if self.head is not None:
            await self.head.stop()


class FakeMesh:
    """Remembers what was announced."""

    def __init__(self) -> None:
        self.announced: list[str] = []
        self.asked: list[NodeId] = []
        self.workers: list[Any] = []
        self.refusals = 0
        self.leaving: frozenset[NodeId] = frozenset()

    def draining(self) -> frozenset[NodeId]:
        return self.leaving

    def live_workers(self, now: float) -> list[Any]:
        return self.workers

    def find(self, node: NodeId) -> None:
        return None

    async def ask(self, node: NodeId, request: Any, timeout_s: float) -> Facts:
        self.asked.append(node)
        if self.refusals:
            self.refusals -= 1
            raise PeerError("it is starting")
        return Facts(free_bytes=2**30, cores=1)

    async def announce_heads(self, heads: Sequence[Head]) -> None:
        self.announced = [head.model for head in heads]


class FakeEngines:
    """Knows an address, and this machine."""

    own_address = "fd00::1"

    def __init__(self, settings: config.Config) -> None:
        self.hardware = Hardware(settings)


class Setup:
    """Rings with the fakes above."""

    def __init__(self, state: Path) -> None:
        settings, _ = config.load(Path("/dev/null"), {}, [f"node.state_dir={state}"])
        self.mesh = FakeMesh()
        self.changes = 0
        self.drained = asyncio.Event()
        self.slept: list[float] = []
        self.asked_idle: list[str] = []
        self.waits = False
        self.looks = asyncio.Event()
        self.rings = rings.Rings(
            settings, OWN, "box", FakeEngines(settings), None, self.mesh, self._changed,  # type: ignore[arg-type] # the fakes above
        )  # fmt: skip

    def _changed(self) -> None:
        self.changes += 1

    async def keep(self, wish: Wish, token: Token = FIRST, proven: bool = False) -> HeadState:
        return await self.rings.keep(wish, token, proven=proven)

    async def until(self, phase: str, name: str = "m") -> HeadState:
        for _ in range(500):
            found = self.rings.state(name)
            if found.phase == phase:
                return found
            await asyncio.sleep(0)
        raise AssertionError(f"{name} is {found.phase}, not {phase}: {found.progress}")


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    real = asyncio.sleep
    monkeypatch.setattr(rings, "Build", FakeBuild)
    FakeBuild.script, FakeBuild.made, FakeBuild.partner = [], [], None
    FakeBuild.lost, FakeBuild.missing = None, 0
    FakeBuild.carriable, FakeBuild.unfit = True, []
    made = Setup(tmp_path)

    async def sleep(seconds: float) -> None:
        if seconds == regain.LOOK_INTERVAL_S:
            await made.looks.wait()
            made.looks.clear()
            return
        if seconds:
            made.slept.append(seconds)
        held = seconds == rings.UNANNOUNCED_S or (seconds and made.waits)
        await (made.drained.wait() if held else real(0))

    async def until_idle(url: str, within_s: float) -> bool:
        made.asked_idle.append(url)
        return True

    monkeypatch.setattr(rings.answering, "until_idle", until_idle)
    monkeypatch.setattr(rings.asyncio, "sleep", sleep)
    return made


def wish(**changes: Any) -> Wish:
    fields = {"name": "m", "model": bundled.NAME, "nodes": 2, "author": bytes(32),
              "generation": 1, "at": 0}  # fmt: skip
    return Wish(**fields | changes)


async def test_a_ring_that_answers_is_announced_until_it_is_ended(setup: Setup) -> None:
    FakeBuild.script = [None]
    await setup.keep(wish())
    found = await setup.until("ready")
    assert setup.mesh.announced == ["m"]
    assert found.url == "http://[fd00::1]:7101"
    assert found.reasons == ("rows leave box as f32",)
    assert setup.rings.running()["m"].phase == Phase.READY
    changes = setup.changes
    await setup.rings.end("m")
    assert setup.mesh.announced == []
    assert FakeBuild.made[0].is_down
    assert setup.rings.state("m") == HeadState("m")
    assert setup.rings.running() == {}
    assert setup.changes > changes
    await setup.rings.end("m")


async def test_a_new_owner_adopts_a_ring_and_nothing_is_built(setup: Setup) -> None:
    FakeBuild.script = [None]
    await setup.keep(wish())
    before = await setup.until("ready")
    after = await setup.keep(wish(), SECOND)
    assert (after.phase, after.epoch, after.url) == (before.phase, before.epoch, before.url)
    assert after.token == SECOND
    assert FakeBuild.made[0].token() == SECOND, "what it tells the stages from now on"
    assert len(FakeBuild.made) == 1
    await setup.rings.stop()


async def test_a_newer_wish_replaces_and_an_older_one_does_not(setup: Setup) -> None:
    FakeBuild.script = [None, None]
    await setup.keep(wish())
    await setup.until("ready")
    state = await setup.keep(wish(generation=2, nodes=3))
    assert FakeBuild.made[0].is_down
    assert state.wish[1] == 2
    await setup.until("ready")
    with pytest.raises(UsageError, match="newer wish"):
        await setup.keep(wish())
    assert [build.wish.nodes for build in FakeBuild.made] == [2, 3]
    await setup.rings.stop()


async def test_a_broken_ring_is_built_again_in_a_later_epoch(setup: Setup) -> None:
    FakeBuild.script = [None, EngineError("not yet"), None]
    await setup.keep(wish())
    await setup.until("ready")
    first = FakeBuild.made[0]
    assert first.head is not None
    revision = setup.rings.state("m").revision
    first.head.end.set_result(EngineError("stage 1 was killed"))
    for _ in range(500):
        if len(FakeBuild.made) == 3:
            break
        await asyncio.sleep(0)
    await setup.until("ready")
    assert first.is_down
    assert [b.epoch for b in FakeBuild.made] == sorted({b.epoch for b in FakeBuild.made})
    assert len({b.ring for b in FakeBuild.made}) == 1
    assert setup.rings.state("m").revision > revision
    await setup.rings.stop()


async def _broken(setup: Setup, epochs: int) -> None:
    """Break the ring that answers, with its head alive, and wait until so many were built."""
    head = FakeBuild.made[-1].head
    head.alive = True
    head.end.set_result(EngineError("stage 1 was lost"))
    for _ in range(500):
        if len(FakeBuild.made) == epochs:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{len(FakeBuild.made)} were built")


async def test_a_head_that_lives_is_carried_over_and_nobody_pauses(setup: Setup) -> None:
    FakeBuild.script = [None] * 3
    FakeBuild.lost = NodeId(bytes([7]) * 32)
    await setup.keep(wish())
    await setup.until("ready")
    first = FakeBuild.made[0]
    head = first.head
    await _broken(setup, 2)
    await setup.until("ready")
    second = FakeBuild.made[1]
    assert second.carried is not None
    assert second.carried.engine is head
    assert (first.is_down, head.is_stopped) == (True, False)
    assert (first.fewer, second.fewer) == (False, True)
    assert (first.doubted, second.doubted) == (frozenset(), {FakeBuild.lost})
    assert second.without == frozenset(), "one loss may be the engine's"
    assert setup.slept == []
    assert setup.mesh.announced == ["m"]
    await _broken(setup, 3)
    await setup.until("ready")
    assert FakeBuild.made[2].without == {FakeBuild.lost}
    await setup.rings.end("m")
    assert head.is_stopped


async def test_a_node_that_came_anew_is_not_left_out(setup: Setup) -> None:
    FakeBuild.script = [None] * 4
    bad = FakeBuild.lost = NodeId(bytes([7]) * 32)
    await setup.keep(wish())
    for epochs in (2, 3):
        await setup.until("ready")
        await _broken(setup, epochs)
    await setup.until("ready")
    assert FakeBuild.made[2].without == {bad}
    setup.rings.came(bad)
    FakeBuild.lost = NodeId(bytes([8]) * 32)
    await _broken(setup, 4)
    await setup.until("ready")
    assert FakeBuild.made[3].without == frozenset()
    await setup.rings.stop()


async def test_answers_wait_until_a_ring_can_be_built(setup: Setup) -> None:
    FakeBuild.script = [None, PeerError("too few nodes"), EngineError("no"), None]
    await setup.keep(wish())
    await setup.until("ready")
    head = FakeBuild.made[0].head
    await _broken(setup, 4)
    await setup.until("ready")
    assert [build.carried is not None for build in FakeBuild.made] == [False, True, True, True]
    assert FakeBuild.made[3].head is head
    assert setup.slept == [1.0, 2.0]
    await setup.rings.stop()
    assert head.is_stopped


async def test_a_model_whose_answers_wait_stays_known(setup: Setup) -> None:
    FakeBuild.script = [None, PeerError("too few nodes"), None, None]
    await setup.keep(wish())
    await setup.until("ready")
    told: list[list[str]] = []
    real = setup.mesh.announce_heads

    async def announce(heads: Sequence[Head]) -> None:
        told.append([head.model for head in heads])
        await real(heads)

    setup.mesh.announce_heads = announce  # type: ignore[method-assign]
    await _broken(setup, 3)
    await setup.keep(wish(name="other"))
    await setup.until("ready", "other")
    await setup.until("ready")
    assert told
    assert all("m" in names for names in told)
    await setup.rings.end("m")
    assert setup.mesh.announced == ["other"]
    await setup.rings.stop()


async def test_what_waits_is_ended_with_its_deployment(setup: Setup) -> None:
    FakeBuild.script = [None, *[PeerError("too few nodes")] * 400]
    await setup.keep(wish())
    await setup.until("ready")
    head = FakeBuild.made[0].head
    await _broken(setup, 3)
    await setup.until("waiting")
    assert not head.is_stopped
    await setup.rings.end("m")
    assert head.is_stopped


async def test_a_head_that_died_is_replaced(setup: Setup) -> None:
    FakeBuild.script = [None, None]
    await setup.keep(wish())
    await setup.until("ready")
    FakeBuild.made[0].head.end.set_result(EngineError("it was killed (signal 9)"))
    for _ in range(500):
        if len(FakeBuild.made) == 2:
            break
        await asyncio.sleep(0)
    assert FakeBuild.made[1].carried is None
    assert setup.slept == [1.0]
    await setup.rings.stop()


async def test_a_ring_that_lacks_nodes_moves_once_one_can_hold_a_stage(setup: Setup) -> None:
    FakeBuild.script = [None] * 2
    FakeBuild.missing = 1
    node = NodeId(bytes([9]) * 32)
    await setup.keep(wish(nodes=3))
    await setup.until("ready")
    head = FakeBuild.made[0].head
    head.alive = True
    setup.mesh.refusals = 2
    setup.rings.came(node)
    setup.rings.came(node)
    for _ in range(500):
        if len(FakeBuild.made) == 2:
            break
        await asyncio.sleep(0)
    FakeBuild.missing = 0
    await setup.until("ready")
    assert setup.mesh.asked == [node] * 3, "it is asked once at a time"
    assert setup.slept == [2.0, 2.0]
    assert FakeBuild.made[1].head is head
    setup.rings.came(node)
    await setup.until("ready")
    assert len(FakeBuild.made) == 2
    await setup.rings.stop()


async def test_a_lost_node_that_is_there_again_is_not_waited_for(setup: Setup) -> None:
    FakeBuild.script = [EngineError("stage 1 was lost")] * 5 + [None]
    FakeBuild.partner, stranger = NodeId(bytes([7]) * 32), NodeId(bytes([8]) * 32)
    await setup.keep(wish())
    for _ in range(500):
        if len(FakeBuild.made) == 4:
            break
        await asyncio.sleep(0)
    assert setup.slept == [1.0, 2.0, 4.0]
    setup.waits = True
    await setup.until("waiting")
    setup.rings.came(stranger)
    await asyncio.sleep(0)
    assert len(FakeBuild.made) == 4
    setup.rings.came(FakeBuild.partner)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(FakeBuild.made) == 5
    assert setup.slept == [1.0, 2.0, 4.0, 8.0, 1.0], "it may break again for another reason"
    setup.rings.came(FakeBuild.partner)
    await setup.until("ready")
    await setup.rings.stop()


async def test_a_node_that_came_back_before_it_was_missed_broke_the_ring(setup: Setup) -> None:
    FakeBuild.script = [EngineError("no"), EngineError("no"), None, None]
    FakeBuild.partner = NodeId(bytes([7]) * 32)
    await setup.keep(wish())
    for _ in range(500):
        if len(FakeBuild.made) == 3:
            break
        await asyncio.sleep(0)
    await setup.until("ready")
    setup.rings.came(FakeBuild.partner)
    head = FakeBuild.made[2].head
    assert head is not None
    head.end.set_result(EngineError("stage 1 was lost"))
    for _ in range(500):
        if len(FakeBuild.made) == 4:
            break
        await asyncio.sleep(0)
    assert setup.slept == [1.0, 2.0, 1.0]
    await setup.rings.stop()


async def test_while_it_waits_the_reason_is_told_and_nothing_is_announced(setup: Setup) -> None:
    FakeBuild.script = [EngineError("no engine", hint="Look.")] * 400
    await setup.keep(wish())
    found = await setup.until("waiting")
    assert found.error == {"kind": "EngineError", "message": "no engine", "hint": "Look."}
    assert setup.rings.running()["m"].phase in (Phase.WAITING, Phase.BUILDING)
    assert setup.mesh.announced == []
    await setup.rings.stop()


@pytest.mark.parametrize("error", [UsageError("too few layers"), ModelError("too large")])
async def test_a_new_wish_that_cannot_be_is_given_up(setup: Setup, error: CoveyError) -> None:
    FakeBuild.script = [error]
    await setup.keep(wish())
    found = await setup.until("failed")
    assert found.error is not None
    assert found.error["message"] == error.message
    assert setup.rings.running()["m"].phase == Phase.FAILED
    assert len(FakeBuild.made) == 1
    await setup.rings.stop()


async def test_a_proven_one_is_not_given_up(setup: Setup) -> None:
    """What ran before may only lack memory or nodes for now: the machines are still starting."""
    FakeBuild.script = [ModelError("no memory yet"), None]
    await setup.keep(wish(), proven=True)
    await setup.until("ready")
    assert setup.mesh.announced == ["m"]
    await setup.rings.stop()


async def test_what_runs_elsewhere_is_drained(setup: Setup) -> None:
    FakeBuild.script = [None, None]
    await setup.keep(wish())
    await setup.until("ready")
    state = setup.rings.drop("m")
    assert (state.phase, state.url) == ("draining", "http://[fd00::1]:7101")
    assert setup.rings.running()["m"].phase == Phase.WAITING
    with pytest.raises(UsageError, match="being ended"):
        await setup.keep(wish(generation=2), SECOND)
    for _ in range(20):
        await asyncio.sleep(0)
    assert setup.mesh.announced == []
    assert setup.asked_idle == [], "gateways have not heard of it yet"
    assert not FakeBuild.made[0].is_down, "answers are still being written"
    assert setup.rings.drop("m").phase == "draining"
    setup.drained.set()
    await setup.until("")
    assert FakeBuild.made[0].is_down
    assert setup.asked_idle == ["http://[fd00::1]:7101"]
    assert setup.rings.drop("m") == HeadState("m")


async def test_what_is_drained_goes_on_where_it_is_wanted_again(setup: Setup) -> None:
    """The head that was to take over died, or the node does not drain any more."""
    FakeBuild.script = [None]
    await setup.keep(wish())
    await setup.until("ready")
    setup.rings.drop("m")
    for _ in range(20):
        await asyncio.sleep(0)
    assert setup.mesh.announced == []
    state = await setup.keep(wish(), SECOND)
    assert (state.phase, state.token) == ("ready", SECOND)
    assert setup.mesh.announced == ["m"]
    setup.drained.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert setup.rings.state("m").phase == "ready"
    assert len(FakeBuild.made) == 1
    await setup.rings.stop()


def _drain_partner(setup: Setup) -> None:
    FakeBuild.partner = NodeId(bytes([7]) * 32)
    setup.mesh.leaving = frozenset({FakeBuild.partner})


async def _made(count: int) -> FakeBuild:
    for _ in range(500):
        if len(FakeBuild.made) == count:
            return FakeBuild.made[-1]
        await asyncio.sleep(0)
    raise AssertionError(f"{len(FakeBuild.made)} were built")


async def test_a_ring_leaves_a_node_that_drains_with_its_answers(setup: Setup) -> None:
    FakeBuild.script = [None, None, None]
    FakeBuild.partner = NodeId(bytes([7]) * 32)
    await setup.keep(wish())
    await setup.until("ready")
    head = FakeBuild.made[0].head
    head.alive = True
    _drain_partner(setup)
    FakeBuild.partner = None
    FakeBuild.missing = 1
    setup.rings.draining_changed()
    second = await _made(2)
    await setup.until("ready")
    assert second.carried is not None
    assert second.carried.engine is head
    assert second.kept == {NodeId(bytes([7]) * 32)}, "if it cannot do without after all"
    assert setup.slept == []
    # Taken back: it is used again, since more nodes were wished for.
    setup.mesh.leaving = frozenset()
    setup.rings.draining_changed()
    await _made(3)
    assert setup.mesh.asked == [NodeId(bytes([7]) * 32)]
    await setup.until("ready")
    assert FakeBuild.made[2].head is head
    await setup.rings.stop()


async def test_a_ring_that_moves_for_a_gain_is_built_as_was_decided(setup: Setup) -> None:
    FakeBuild.script = [None, None, EngineError("a stage did not load"), None]
    await setup.keep(wish())
    await setup.until("ready")
    head = FakeBuild.made[0].head
    head.alive = True
    deployment = setup.rings._deployments["m"]
    plan = Plan((Stage("n", "n", 0, 1),), ())

    def moves() -> None:
        deployment.planned, deployment.moves = plan, "31 % fewer ms a token over other nodes"
        deployment.again.set()

    moves()
    second = await _made(2)
    await setup.until("ready")
    assert second.planned is plan
    assert second.carried is not None and second.carried.engine is head
    # It cannot be built so, or breaks before it moves: then it is planned anew.
    moves()
    await _made(4)
    await setup.until("ready")
    assert [one.planned for one in FakeBuild.made] == [None, plan, plan, None]
    assert FakeBuild.made[3].head is head
    deployment.planned = plan
    FakeBuild.script = [None]
    head.end.set_result(EngineError("a stage is gone"))
    await _made(5)
    assert FakeBuild.made[4].planned is None
    await setup.rings.stop()


async def test_what_is_known_of_a_better_ring_is_told(setup: Setup) -> None:
    FakeBuild.script = [None]
    await setup.keep(wish())
    revision = (await setup.until("ready")).revision
    deployment = setup.rings._deployments["m"]
    for _ in range(2):
        setup.rings._gain(deployment, "a better ring is known: 31 % fewer ms a token")
    found = setup.rings.state("m")
    assert found.gain == "a better ring is known: 31 % fewer ms a token"
    assert found.revision == revision + 1
    await setup.rings.stop()


async def test_a_node_that_comes_while_a_ring_is_built_without_it_is_used_then(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeBuild.script = [None, None]
    FakeBuild.missing = 1
    node = NodeId(bytes([9]) * 32)
    setup.mesh.leaving = frozenset({node})
    setup.rings.draining_changed()
    up = FakeBuild.up

    async def slowly(build: FakeBuild) -> FakeHead:
        setup.mesh.leaving = frozenset()
        setup.rings.draining_changed()
        found = await up(build)
        found.alive = True
        return found

    monkeypatch.setattr(FakeBuild, "up", slowly)
    await setup.keep(wish(nodes=3))
    second = await _made(2)
    assert setup.mesh.asked == [node]
    await setup.until("ready")
    assert second.carried is not None
    await setup.rings.stop()


async def test_a_ring_that_cannot_do_without_stays_and_says_so(setup: Setup) -> None:
    FakeBuild.script = [None, None]
    FakeBuild.unfit = [ModelError("too large"), EngineError("GPUs are tried"), PeerError("few")]
    _drain_partner(setup)
    await setup.keep(wish())
    before = await setup.until("ready")
    FakeBuild.made[0].head.alive = True
    FakeBuild.partner = None
    said = []
    for _ in range(200):
        await asyncio.sleep(0)
        said.append((setup.rings.state("m").phase, setup.rings.state("m").stays))
    fits_not = ("ready", "it does not fit without partner")
    assert {fits_not, ("ready", "GPUs are tried.")} < set(said)
    await _made(2)
    assert setup.slept[:3] == [4.0] * 3, "it looked again until it could"
    after = await setup.until("ready")
    assert after.revision > before.revision
    assert after.stays == ""
    await setup.rings.stop()


async def test_a_ring_whose_answers_would_break_moves_between_two(setup: Setup) -> None:
    FakeBuild.script = [None, None]
    FakeBuild.carriable = False
    _drain_partner(setup)
    await setup.keep(wish())
    await setup.until("ready")
    FakeBuild.partner = None
    second = await _made(2)
    await setup.until("ready")
    assert setup.asked_idle == ["http://[fd00::1]:7101"]
    assert second.carried is None
    await setup.rings.stop()


async def test_a_ring_that_is_dropped_and_ended_at_once_is_down(setup: Setup) -> None:
    FakeBuild.script = [None]
    await setup.keep(wish())
    await setup.until("ready")
    setup.rings.drop("m")
    await setup.rings.end("m")
    assert FakeBuild.made[0].is_down
    assert setup.mesh.announced == []
    assert setup.rings.state("m") == HeadState("m")


async def test_a_drained_ring_that_breaks_is_not_built_again(setup: Setup) -> None:
    FakeBuild.script = [None, None]
    await setup.keep(wish())
    await setup.until("ready")
    setup.rings.drop("m")
    head = FakeBuild.made[0].head
    assert head is not None
    head.end.set_result(EngineError("stage 1 was killed"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert FakeBuild.made[0].is_down
    setup.drained.set()
    await setup.until("")
    assert len(FakeBuild.made) == 1


async def test_more_than_fit_a_record_are_refused(setup: Setup) -> None:
    FakeBuild.script = [None] * 20
    with pytest.raises(UsageError, match="do not fit"):
        for number in range(20):
            await setup.keep(wish(name=f"{number:060}"))
    await setup.rings.stop()


async def test_a_ring_that_lacks_nodes_looks_for_them_now_and_then(setup: Setup) -> None:
    FakeBuild.script = [None] * 4
    FakeBuild.missing = 1
    bad = FakeBuild.lost = NodeId(bytes([7]) * 32)
    setup.mesh.workers = [SimpleNamespace(node_id=bad)]
    await setup.keep(wish(nodes=3))
    for epochs in (2, 3):
        await setup.until("ready")
        await _broken(setup, epochs)
    await setup.until("ready")
    assert FakeBuild.made[2].without == {bad}
    setup.looks.set()
    for _ in range(50):
        await asyncio.sleep(0)
    assert bad not in setup.mesh.asked, "it lost two stages just now"
    setup.rings.came(bad)
    FakeBuild.missing = 0
    for _ in range(500):
        if len(FakeBuild.made) == 4:
            break
        await asyncio.sleep(0)
    await setup.until("ready")
    assert FakeBuild.made[3].without == frozenset()
    await setup.rings.stop()
