"""Stages for other nodes' heads: who may do what to which ring, and how a stage's life is told."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.config import Config
from agent.deploy import machine, stages
from agent.deploy.hardware import Hardware
from agent.deploy.messages import (
    AskFacts,
    AskStage,
    ConnectStage,
    CutFile,
    Facts,
    FetchAhead,
    LoadStage,
    RingHere,
    StageState,
    StartServer,
    StopRing,
    StoredLayers,
)
from agent.errors import CoveyError, EngineError, MembershipError, NotRunning, PeerError, UsageError
from agent.identity.addresses import overlay_ipv6
from agent.identity.keys import NodeId, NodeKey
from agent.models.fetch import Progress
from agent.ownership.lease import Token

MESH = bytes(32)
HEAD, OTHER, OWN = (NodeKey(bytes([n]) * 32).id for n in (1, 2, 3))
RING = "ab" * 16
OLD, TOKEN, NEW = (Token(epoch, OTHER.ed25519) for epoch in (6, 7, 8))


def address(node: NodeId) -> str:
    return str(overlay_ipv6(MESH, node))


FILE = CutFile("00" * 32, 10, f"http://[{address(HEAD)}]:7070")


class FakeEngine:
    """Stands for an engine process: the rules around it are what is tested here."""

    def __init__(self) -> None:
        self.port, self.pid = 7100, 5
        self.runs_on = "2 CPU threads"
        self.rows = "f32 (940 Mbit/s)"
        self.connected_to: tuple[str, int] | None = None
        self.stopped = False
        self.end: asyncio.Future[CoveyError | None] = asyncio.get_running_loop().create_future()

    async def connect(self, host: str, port: int) -> None:
        self.connected_to = (host, port)

    async def wait_ready(self) -> None:
        assert self.connected_to

    async def wait_ended(self) -> CoveyError | None:
        return await self.end

    async def stop(self, *, grace_s: float = 8.0) -> None:
        self.stopped = True


class FakeEngines:
    """Makes one such engine."""

    def __init__(self) -> None:
        self.engine: FakeEngine | None = None
        self.started: list[tuple[Any, ...]] = []
        self.fault: CoveyError | None = None
        self.hardware = Hardware(Config())

    def address(self, node: NodeId) -> str:
        return address(node)

    async def start_rpc_server(self, *arguments: Any) -> FakeEngine:
        engine = await self.start_stage(*arguments)
        engine.connected_to = (address(HEAD), 0)  # nobody has to tell it whom to connect to
        return engine

    async def start_stage(self, *arguments: Any, **_: Any) -> FakeEngine:
        if self.fault is not None:
            raise self.fault
        self.started.append(arguments)
        self.engine = FakeEngine()
        return self.engine


def load(**changes: Any) -> LoadStage:
    fields: dict[str, Any] = {
        "ring": RING, "token": TOKEN, "epoch": 5, "index": 1, "stages": 2,
        "weights": FILE, "predecessor": str(HEAD), "context": 64, "frames": "f32",
    }  # fmt: skip
    return LoadStage(**fields | changes)


@pytest.fixture
def engines() -> FakeEngines:
    return FakeEngines()


@pytest.fixture
def host(engines: FakeEngines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stages.StageHost:
    async def fetched(
        url: str, target: Path, size: int, sha256: str, progress: Callable[[int], None]
    ) -> None:
        assert url == f"http://[{address(HEAD)}]:7070/stage/{sha256}"
        progress(size)

    monkeypatch.setattr(stages.blobs, "fetch", fetched)
    return stages.StageHost(tmp_path, engines)  # type: ignore[arg-type] # the fake beside it


async def until(what: Callable[[], Awaitable[Any]]) -> Any:
    for _ in range(200):
        if result := await what():
            return result
        await asyncio.sleep(0)
    raise AssertionError("it did not come to that")


async def phase(host: stages.StageHost, wanted: str) -> StageState:
    async def look() -> StageState | None:
        state = await host.answer(HEAD, AskStage(ring=RING, epoch=5, index=1))
        assert isinstance(state, StageState)
        return state if state.phase == wanted else None

    found: StageState = await until(look)
    return found


async def test_facts(host: stages.StageHost) -> None:
    facts = await host.answer(HEAD, AskFacts())
    assert isinstance(facts, Facts)
    assert facts.free_bytes > 0
    assert facts.cores >= 1


async def test_a_stage_loads_listens_connects_and_is_ready(
    host: stages.StageHost, engines: FakeEngines
) -> None:
    await host.answer(HEAD, load())
    assert (await phase(host, "listening")).port == 7100
    request = ConnectStage(
        ring=RING, token=TOKEN, epoch=5, index=1, successor=str(OTHER), port=7101
    )
    await host.answer(HEAD, request)
    ready = await phase(host, "ready")
    assert (ready.rows, ready.runs_on) == ("f32 (940 Mbit/s)", "2 CPU threads")
    assert engines.engine is not None
    assert engines.engine.connected_to == (address(OTHER), 7101)
    assert [e["phase"] for e in host.engines()] == ["ready"]
    await host.answer(HEAD, StopRing(ring=RING, token=TOKEN))
    assert engines.engine.stopped
    assert host.engines() == []


async def test_an_rpc_server_serves_who_asked_for_it(
    host: stages.StageHost, engines: FakeEngines
) -> None:
    request = StartServer(ring=RING, token=TOKEN, epoch=5, index=1, stages=2)
    await host.answer(HEAD, request)
    assert (await phase(host, "ready")).port == 7100
    place, head = engines.started[0]
    assert (place.ring, place.epoch, place.index, place.stages) == (RING, 5, 1, 2)
    assert head == HEAD
    assert host.partners() == {HEAD}
    for refused in (request, StopRing(ring=RING, token=TOKEN)):
        with pytest.raises(MembershipError, match="belongs to"):
            await host.answer(OTHER, refused)
    assert engines.engine is not None
    engines.engine.end.set_result(EngineError("its head is gone"))
    assert (await phase(host, "broken")).message == "its head is gone"
    await host.answer(HEAD, StopRing(ring=RING, token=TOKEN))
    assert engines.engine.stopped
    assert host.engines() == []


async def test_a_broken_engine_is_told_with_its_reason(
    host: stages.StageHost, engines: FakeEngines
) -> None:
    await host.answer(HEAD, load())
    await phase(host, "listening")
    await host.answer(
        HEAD, ConnectStage(ring=RING, token=TOKEN, epoch=5, index=1, successor=str(OTHER), port=1)
    )
    await phase(host, "ready")
    assert engines.engine is not None
    engines.engine.end.set_result(EngineError("it was killed", hint="Look."))
    state = await phase(host, "broken")
    assert (state.message, state.hint) == ("it was killed", "Look.")


async def test_a_fault_while_loading_is_told(host: stages.StageHost, engines: FakeEngines) -> None:
    engines.fault = PeerError("no bytes came")
    await host.answer(HEAD, load())
    assert (await phase(host, "broken")).message == "no bytes came"


async def test_a_ring_belongs_to_who_loaded_it(host: stages.StageHost) -> None:
    await host.answer(HEAD, load())
    await phase(host, "listening")
    for request in (
        StopRing(ring=RING, token=TOKEN),
        AskStage(ring=RING, epoch=5, index=1),
        ConnectStage(ring=RING, token=TOKEN, epoch=5, index=1, successor=str(OTHER), port=1),
        load(epoch=9, weights=CutFile("00" * 32, 10, f"http://[{address(OTHER)}]:7070")),
    ):
        with pytest.raises(MembershipError, match="belongs to"):
            await host.answer(OTHER, request)
    assert (await phase(host, "listening")).port


async def test_weights_are_fetched_ahead_and_nothing_runs(
    host: stages.StageHost, engines: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, fetched = asyncio.Event(), []

    async def fetch(
        url: str, target: Path, size: int, sha256: str, progress: Callable[[int], None]
    ) -> None:
        progress(size // 2)
        fetched.append(sha256)
        await step.wait()

    monkeypatch.setattr(stages.blobs, "fetch", fetch)
    request = FetchAhead(ring=RING, token=TOKEN, weights=FILE)

    async def there() -> StageState:
        state = await host.answer(HEAD, request)
        assert isinstance(state, StageState)
        return state

    async def half() -> bool:
        return (await there()).done == FILE.size // 2

    assert (await there()).phase == "fetching"
    await until(half)
    other = CutFile("11" * 32, 10, FILE.source)  # the ring is planned otherwise by now
    await host.answer(HEAD, FetchAhead(ring=RING, token=TOKEN, weights=other))
    for _ in range(3):
        await asyncio.sleep(0)
    await there()
    step.set()

    async def ready() -> bool:
        return (await there()).phase == "ready"

    await until(ready)
    assert fetched == [FILE.sha256, other.sha256, FILE.sha256]
    assert host.engines() == []
    assert host.running() == []
    await host.answer(HEAD, StopRing(ring=RING, token=TOKEN))
    assert (await there()).phase == "fetching", "it was forgotten with its ring"
    await host.stop()


async def test_who_may_not_load_may_not_fetch_ahead(
    host: stages.StageHost, engines: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MembershipError, match="overlay address only"):
        await host.answer(OTHER, FetchAhead(ring=RING, token=TOKEN, weights=FILE))
    with pytest.raises(UsageError, match="SHA-256"):
        bad = CutFile("../x", 10, FILE.source)
        await host.answer(HEAD, FetchAhead(ring=RING, token=TOKEN, weights=bad))
    await host.answer(HEAD, load(token=NEW))
    with pytest.raises(UsageError, match="newer owner"):
        await host.answer(HEAD, FetchAhead(ring=RING, token=OLD, weights=FILE))
    with pytest.raises(MembershipError, match="belongs to"):
        own = CutFile("00" * 32, 10, f"http://[{address(OTHER)}]:7070")
        await host.answer(OTHER, FetchAhead(ring=RING, token=NEW, weights=own))
    await host.stop()
    drains = stages.StageHost(Path("/nowhere"), engines, lambda: True)  # type: ignore[arg-type] # the fake above
    with pytest.raises(NotRunning, match="draining"):
        await drains.answer(HEAD, FetchAhead(ring=RING, token=TOKEN, weights=FILE))


@pytest.mark.parametrize("source", ["http://192.0.2.1:80", f"http://[{address(OTHER)}]:7070", ""])
async def test_files_come_from_the_heads_overlay_address_only(
    host: stages.StageHost, source: str
) -> None:
    with pytest.raises(MembershipError, match="overlay address"):
        await host.answer(HEAD, load(weights=CutFile("00" * 32, 10, source)))
    assert host.engines() == []


async def test_a_newer_epoch_replaces_an_older_one_and_never_the_reverse(
    host: stages.StageHost, engines: FakeEngines
) -> None:
    await host.answer(HEAD, load())
    await phase(host, "listening")
    first = engines.engine
    assert first is not None
    with pytest.raises(UsageError, match="epoch 4 is over"):
        await host.answer(HEAD, load(epoch=4))
    await host.answer(HEAD, load(epoch=6))
    assert first.stopped
    old = await host.answer(HEAD, AskStage(ring=RING, epoch=5, index=1))
    assert isinstance(old, StageState)
    assert old.phase == "unknown"
    await host.stop()


@pytest.mark.parametrize("sha256", ["../../etc/passwd", "AB" * 32, "", "0" * 63])
async def test_a_hash_that_is_none_never_becomes_a_path(
    host: stages.StageHost, sha256: str
) -> None:
    with pytest.raises(UsageError, match="SHA-256"):
        await host.answer(HEAD, load(weights=CutFile(sha256, 10, FILE.source)))


async def test_connecting_what_does_not_listen(host: stages.StageHost) -> None:
    with pytest.raises(UsageError, match="does not listen"):
        await host.answer(
            HEAD,
            ConnectStage(ring=RING, token=TOKEN, epoch=5, index=1, successor=str(OTHER), port=1),
        )


async def test_an_older_owners_commands_are_refused_once_a_newer_one_spoke(
    host: stages.StageHost, engines: FakeEngines
) -> None:
    await host.answer(HEAD, load(token=OLD))
    await phase(host, "listening")
    connect = ConnectStage(ring=RING, token=NEW, epoch=5, index=1, successor=str(OTHER), port=7101)
    await host.answer(HEAD, connect)
    await phase(host, "ready")
    for request in (
        StopRing(ring=RING, token=TOKEN),
        ConnectStage(ring=RING, token=OLD, epoch=5, index=1, successor=str(OTHER), port=1),
        load(token=TOKEN, epoch=9),
    ):
        with pytest.raises(UsageError, match="newer owner"):
            await host.answer(HEAD, request)
    assert engines.engine is not None
    assert not engines.engine.stopped
    assert engines.engine.connected_to == (address(OTHER), 7101)
    await host.answer(HEAD, StopRing(ring=RING, token=NEW))
    with pytest.raises(UsageError, match="newer owner"):
        await host.answer(HEAD, load(token=TOKEN))
    assert host.engines() == []


async def test_a_stage_whose_head_is_gone_while_it_loads_is_ended(
    host: stages.StageHost, engines: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "ABANDONED_S", 0.05)
    await host.answer(HEAD, load())
    async with asyncio.timeout(10):
        while [e["phase"] for e in host.engines()] != ["broken"]:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    assert "has gone" in host.engines()[0]["message"]
    assert engines.engine is not None
    assert engines.engine.stopped
    await host.stop()


async def test_a_broken_stage_is_forgotten_after_a_while(
    host: stages.StageHost, engines: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_BROKEN_KEPT_S", 0.0)
    engines.fault = PeerError("no bytes came")
    await host.answer(HEAD, load())
    await until(lambda: _true(host.engines() == []))


async def _true(value: bool) -> bool:
    return value


MODEL = "cd" * 32


async def test_layers_of_a_stored_model_are_got_once_and_told_of_on_the_way(
    engines: FakeEngines, tmp_path: Path
) -> None:
    asked: list[tuple[str, tuple[int, int]]] = []
    seen: list[StageState] = []

    async def stored(
        model: str, span: tuple[int, int], path: Path, watch: Callable[[Progress], None]
    ) -> None:
        asked.append((model, span))
        watch(Progress(3, 12, 1.0))
        state = await host.answer(HEAD, AskStage(ring=RING, epoch=5, index=1))
        assert isinstance(state, StageState)
        seen.append(state)
        path.write_bytes(b"layers")

    host = stages.StageHost(tmp_path / "stages", engines, stored=stored)  # type: ignore[arg-type] # see above
    for epoch in (5, 6):
        await host.answer(HEAD, load(epoch=epoch, weights=StoredLayers(MODEL, 2, 5, 12)))
        for _ in range(20):
            await asyncio.sleep(0)
        state = await host.answer(HEAD, AskStage(ring=RING, epoch=epoch, index=1))
        assert isinstance(state, StageState)
        assert (state.phase, state.port) == ("listening", 7100)
    assert asked == [(MODEL, (2, 5))], "it has them the second time"
    assert [(state.phase, state.done, state.total) for state in seen] == [("fetching", 3, 12)]
    assert engines.started[0][0].name == f"{MODEL}-2-5.gguf"
    await host.stop()


async def test_layers_that_two_rings_ask_for_are_got_once(
    engines: FakeEngines, tmp_path: Path
) -> None:
    asked: list[Path] = []
    there = asyncio.Event()

    async def stored(_: str, __: tuple[int, int], path: Path, ___: object) -> None:
        asked.append(path)
        await there.wait()
        path.write_bytes(b"layers")

    host = stages.StageHost(tmp_path / "stages", engines, stored=stored)  # type: ignore[arg-type] # see above
    rings = (RING, "9f" * 16)
    for ring in rings:
        await host.answer(HEAD, load(ring=ring, weights=StoredLayers(MODEL, 2, 5, 12)))
    for _ in range(20):
        await asyncio.sleep(0)
    there.set()
    for _ in range(20):
        await asyncio.sleep(0)
    for ring in rings:
        state = await host.answer(HEAD, AskStage(ring=ring, epoch=5, index=1))
        assert isinstance(state, StageState)
        assert state.phase == "listening"
    assert len(asked) == 1
    await host.stop()


async def test_layers_that_cannot_be_got_break_the_stage_with_the_reason(
    engines: FakeEngines, tmp_path: Path
) -> None:
    async def stored(*_: Any) -> None:
        raise PeerError("nobody has the model")

    for given, said in ((stored, "nobody has the model"), (None, "no store of models")):
        host = stages.StageHost(tmp_path / "stages", engines, stored=given)  # type: ignore[arg-type] # see above
        await host.answer(HEAD, load(weights=StoredLayers(MODEL, 2, 5, 12)))
        for _ in range(20):
            await asyncio.sleep(0)
        state = await host.answer(HEAD, AskStage(ring=RING, epoch=5, index=1))
        assert isinstance(state, StageState)
        assert state.phase == "broken"
        assert said in state.message
        await host.stop()


@pytest.mark.parametrize("weights", [StoredLayers("../x", 0, 1, 1), StoredLayers(MODEL, 4, 4, 1)])
async def test_layers_are_named_by_an_id_and_numbers(
    host: stages.StageHost, weights: StoredLayers
) -> None:
    with pytest.raises(UsageError, match="named by its id"):
        await host.answer(HEAD, load(weights=weights))


async def test_facts_say_who_drains_and_what_a_ring_would_give_back(
    engines: FakeEngines, host: stages.StageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda: 1000)
    monkeypatch.setattr(machine, "own_bytes", lambda pid: pid)
    await host.answer(HEAD, load())
    monkeypatch.setattr(host, "_draining", lambda: True)
    await until(lambda: _true(engines.engine is not None))
    await until(lambda: _true(host.engines()[0]["phase"] == "listening"))
    assert host.running() == [(RING, 1)]
    for ring, free in (("", 1000), ("cd" * 16, 1000), (RING, 1005)):
        facts = await host.answer(OTHER, AskFacts(ring))
        assert isinstance(facts, Facts)
        assert (facts.free_bytes, facts.draining) == (free, True)
    assert engines.engine is not None
    engines.engine.end.set_result(EngineError("it was killed"))
    await engines.engine.connect("::1", 1)
    stage = host._stages[RING, 1]
    stage.connected.set()
    await until(lambda: _true(host.engines()[0]["phase"] == "broken"))
    assert host.running() == []
    await host.stop()


async def test_a_ring_that_was_planned_before_a_node_drained_is_refused_unless_it_was_here(
    engines: FakeEngines, host: stages.StageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.answer(HEAD, load())
    await host.answer(HEAD, StopRing(RING, TOKEN))
    monkeypatch.setattr(host, "_draining", lambda: True)
    for late in (load(ring="cd" * 16), StartServer("cd" * 16, TOKEN, 5, 1, 2)):
        with pytest.raises(NotRunning, match="this node is draining"):
            await host.answer(HEAD, late)
    assert host.running() == []
    await host.answer(HEAD, load(epoch=6))
    assert host.running() == [(RING, 1)]
    await host.stop()


async def test_rings_with_the_same_part_fetch_it_one_after_the_other(
    host: stages.StageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = 0, 0

    async def fetched(*_: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    monkeypatch.setattr(stages.blobs, "fetch", fetched)
    for ring in (RING, "cd" * 16, "ef" * 16):
        await host.answer(HEAD, load(ring=ring))
    await until(lambda: _true(all(e["phase"] == "listening" for e in host.engines())))
    assert most == 1
    await host.stop()


class Heads:
    """The rings of `m` whose heads are here, as a test says."""

    def __init__(self, *here: RingHere) -> None:
        self.here = list(here)
        self.turned_out: list[tuple[str, int]] = []

    def of(self, name: str) -> list[RingHere]:
        return list(self.here) if name == "m" else []

    async def make_room(self, name: str, number: int) -> None:
        self.turned_out.append((name, number))
        self.here = [ring for ring in self.here if ring.number == number]


async def test_a_node_hosts_one_ring_of_a_deployment_and_says_which(
    host: stages.StageHost, engines: FakeEngines
) -> None:
    await host.answer(HEAD, load(key="m/2"))
    await phase(host, "listening")
    other = "cd" * 16
    with pytest.raises(NotRunning, match="this node has part in ring 2 of m"):
        await host.answer(HEAD, load(ring=other, key="m"))
    with pytest.raises(NotRunning, match="part in ring 2"):
        await host.answer(HEAD, load(ring=other, key="m/3"))
    facts = await host.answer(OTHER, AskFacts(deployment="m"))
    assert isinstance(facts, Facts)
    assert facts.rings == (RingHere(2, nodes=(str(HEAD),)),)
    # Other deployments have nothing to do with it, nor has a ring whose stage here is over.
    assert host.rings_of("n") == ()
    await host.answer(HEAD, StopRing(ring=RING, token=TOKEN))
    assert host.rings_of("m") == ()
    await host.answer(HEAD, load(ring=other, key="m"))
    assert [ring.number for ring in host.rings_of("m")] == [1]


async def test_a_head_that_waits_makes_room_for_a_lower_ring_only(
    tmp_path: Path, engines: FakeEngines
) -> None:
    heads = Heads(RingHere(2, head=True))
    host = stages.StageHost(tmp_path, engines, heads=heads)  # type: ignore[arg-type] # see above
    with pytest.raises(NotRunning, match="part in ring 2"):
        await host.answer(HEAD, load(key="m/3"))
    assert heads.turned_out == []
    await host.answer(HEAD, load(key="m"))
    assert heads.turned_out == [("m", 1)]
    heads.here = [RingHere(2, head=True, nodes=(str(OTHER),))]
    await host.answer(HEAD, StopRing(ring=RING, token=TOKEN))
    with pytest.raises(NotRunning, match="part in ring 2"):
        await host.answer(HEAD, load(key="m", epoch=6))
    await host.stop()
