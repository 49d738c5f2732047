"""Ports for engines: from the range, each to one engine, also while several start at once."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import config
from agent.deploy import engines
from agent.deploy.engines import Engines, Place
from agent.deploy.spare import Spare
from agent.engine.silence import Known
from agent.engine.spec import EngineSpec
from agent.engine.supervisor import Engine, spawn
from agent.errors import EngineError, EnvironmentFault
from agent.identity.keys import NodeId, NodeKey
from agent.models import bundled

OWN, OTHER = NodeKey(bytes(32)).id, NodeKey(bytes([1]) * 32).id
PLACE = Place("ab" * 16, 1, 1, 2)


class FakeEngine:
    """An engine that starts when it is let, and listens where it was told."""

    waiting: list["FakeEngine"]
    runs_on = unconfined = ""
    name = "the engine of the model"

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = self.first_spec = spec
        self.ended = self.stopped = False
        self.port, self.http_port = spec.port, spec.http_port
        self.go: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        self.stopped = True

    async def regroup(self, spec: EngineSpec, *, load_timeout_s: float) -> None:
        self.spec = spec

    @classmethod
    async def start(cls, spec: EngineSpec, **_: Any) -> "FakeEngine":
        engine = cls(spec)
        cls.waiting.append(engine)
        await engine.go
        return engine


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Engines]:
    """Engines on ::1 with a range of four ports that are free now."""
    FakeEngine.waiting = []
    monkeypatch.setattr(engines, "Engine", FakeEngine)
    monkeypatch.setattr(engines, "overlay_ipv6", lambda mesh, node: "::1")
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        first = min(probe.getsockname()[1], 65000)
    settings, _ = config.load(Path("/dev/null"), {}, [
        f"network.engine_ports={first}-{first + 3}", f"node.state_dir={tmp_path / 'state'}",
    ])  # fmt: skip
    yield Engines(settings, bytes(32), OWN)


async def start(few: Engines) -> FakeEngine:
    engine = await few.start_stage(Path("x"), PLACE, OTHER, context=64, frames="f32")
    assert isinstance(engine, FakeEngine)
    return engine


async def test_engines_that_start_at_once_get_different_ports(few: Engines) -> None:
    tasks = [asyncio.create_task(start(few)) for _ in range(4)]
    await asyncio.sleep(0)
    assert len({engine.port for engine in FakeEngine.waiting}) == 4
    with pytest.raises(EnvironmentFault, match="no free port is left"):
        await start(few)
    for engine in FakeEngine.waiting:
        engine.go.set_result(None)
    running = await asyncio.gather(*tasks)
    with pytest.raises(EnvironmentFault):
        await start(few)
    running[2].ended = True
    again = asyncio.create_task(start(few))
    await asyncio.sleep(0)
    assert FakeEngine.waiting[-1].port == running[2].port
    FakeEngine.waiting[-1].go.set_result(None)
    await again


async def test_a_start_that_failed_gives_its_port_back(few: Engines) -> None:
    task = asyncio.create_task(start(few))
    await asyncio.sleep(0)
    (engine,) = FakeEngine.waiting
    engine.go.set_exception(EngineError("it died"))
    with pytest.raises(EngineError):
        await task
    again = asyncio.create_task(start(few))
    await asyncio.sleep(0)
    assert FakeEngine.waiting[-1].port == engine.port
    FakeEngine.waiting[-1].go.set_result(None)
    await again


async def test_a_port_that_something_else_holds_is_passed_over(few: Engines) -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", few._ports[0]))
        other.listen()
        task = asyncio.create_task(start(few))
        await asyncio.sleep(0)
    assert FakeEngine.waiting[0].port != few._ports[0]
    FakeEngine.waiting[0].go.set_result(None)
    await task


def test_addresses_follow_from_ids() -> None:
    settings, _ = config.load(Path("/dev/null"), {})
    made = Engines(settings, bytes(32), OWN)
    assert isinstance(OTHER, NodeId)
    assert made.own_address == made.address(OWN) != made.address(OTHER)


@pytest.mark.parametrize("wanted", [False, True])
async def test_what_the_operator_says_of_engines_gets_to_each_of_them(
    few: Engines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: bool
) -> None:
    said = str(wanted).lower()
    words = ["engine.threads=3", f"engine.flash_attention={said}", f"engine.confine={said}",
             f"node.state_dir={tmp_path}"]  # fmt: skip
    settings, _ = config.load(Path("/dev/null"), {}, words)
    monkeypatch.setattr(few, "_settings", settings)
    specs: list[EngineSpec] = []

    async def started(spec: EngineSpec) -> None:
        specs.append(spec)

    monkeypatch.setattr(few, "_start", started)
    await few.start_whole(Path("m"), name="m", context=64)
    await few.start_head([Path("a"), Path("b")], PLACE, OTHER, name="m", context=64, frames="q8")
    await few.start_stage(Path("x"), PLACE, OTHER, context=64, frames="q8")
    assert [spec.role for spec in specs] == ["whole", "head", "stage"]
    told = {(spec.threads, spec.flash_attention, spec.confined) for spec in specs}
    assert told == {(3, wanted, wanted)}


async def carry(few: Engines, whole: Path, **specs: Any) -> tuple[FakeEngine, Engine]:
    """Have a head that was started with its parts go on with the whole model; returns both."""
    parts = [few._settings.state_dir / "parts" / name for name in "ab"]
    starting = asyncio.create_task(
        few.start_head(parts, PLACE, OTHER, name="m", context=64, frames="f32", **specs)
    )
    await asyncio.sleep(0)
    FakeEngine.waiting[-1].go.set_result(None)
    head: Any = await starting
    going = asyncio.create_task(few.start_whole(whole, name="m", context=64, carried=head))
    await asyncio.sleep(0)
    if len(FakeEngine.waiting) > 1:
        FakeEngine.waiting[-1].go.set_result(None)
    return head, await going


async def test_a_head_may_read_what_it_can_be_told_to_go_on_with(
    few: Engines, tmp_path: Path
) -> None:
    model = tmp_path / "elsewhere" / "m.gguf"
    head, found = await carry(few, model, model=model)
    assert found is head
    assert head.spec.role == "whole" and head.spec.files == (str(model),)
    stored = few._settings.models_dir / "stored.gguf"
    FakeEngine.waiting.clear()
    head.ended = True  # its ports are free again
    head, found = await carry(few, stored)
    assert found is head
    # It was allowed before they were there, so they had to be.
    assert stored.parent.is_dir()
    assert (few._settings.state_dir / "parts").is_dir()


async def test_a_head_that_may_not_read_what_it_is_to_go_on_with_starts_anew(
    few: Engines, tmp_path: Path
) -> None:
    head, found = await carry(few, tmp_path / "elsewhere" / "m.gguf")
    assert found is not head and head.stopped
    assert [engine.spec.role for engine in FakeEngine.waiting] == ["head", "whole"]


async def test_what_engines_could_not_give_up_is_said_once_and_is_in_the_status(
    few: Engines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[str]:
        return [one for one in few.hardware.describe()["lines"] if "confined" in one]

    for words in ("", "files: no Landlock", "files: no Landlock", ""):
        monkeypatch.setattr(FakeEngine, "unconfined", words)
        task = asyncio.create_task(start(few))
        await asyncio.sleep(0)
        FakeEngine.waiting[-1].go.set_result(None)
        (await task).ended = True
        assert lines() == ([f"engines are not fully confined: {words}"] if words else [])
        assert few.hardware.describe()["unconfined"] == words
    assert caplog.text.count("engines here are not fully confined: files: no Landlock") == 1


async def test_what_engines_learn_of_links_is_handed_on(
    few: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few.logs, "add", lambda _: None)
    engine: Any = FakeEngine(EngineSpec(role="stage", files=("x",)))
    few._made(engine)
    assert few._in_ring("stage", [], PLACE, OTHER, 1, 64, "f32").links == {}
    bad, worse = Known(9, 0.5, 1.0, 1.0), Known(19, 0.6, 1.0, 2.0)
    engine.heard({"one": bad, "other": bad})
    engine.heard({"one": worse})
    spec = few._in_ring("stage", [], PLACE, OTHER, 1, 64, "f32")
    assert spec.links == {"one": worse, "other": bad}
    engine.heard({str(n): bad for n in range(63)})
    links = few._in_ring("head", [], PLACE, OTHER, 1, 64, "f32").links
    assert len(links) == 64
    assert "one" in links and "other" not in links, "the one heard of last longest ago"


class Telling(FakeEngine):
    """An engine that tells of itself when it is asked."""

    alive = ready = True
    pid = os.getpid()

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self.stats: dict[str, float] = {}

    async def tell(self, timeout_s: float) -> None:
        self.stats = {"rows": 7.0}


async def test_engines_that_run_tell_what_they_did_and_how_many_failed_is_counted(
    few: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few.logs, "add", lambda _: None)
    here, gone, broken = (
        Telling(EngineSpec(role="stage", files=("x",), ring="0a1b2c3d" * 4, stage=2))
        for _ in range(3)
    )
    gone.alive = False
    for engine in (here, gone, broken):
        few._made(engine)  # type: ignore[arg-type]
    gone.over(None)  # type: ignore[attr-defined]
    broken.over(EngineError("it died"))  # type: ignore[attr-defined]
    head = Telling(EngineSpec(role="head", files=("x", "y"), model_name="chat"))
    few._running = [here, gone, head]  # type: ignore[list-item]
    found = await few.figures()
    told, headed = found.running
    assert (headed.deployment, headed.role) == ("chat", "head")
    assert (told.ring, told.stage, told.role, told.ready) == ("0a1b2c3d", 2, "stage", True)
    assert told.deployment == ""
    assert told.stats == {"rows": 7.0}
    assert told.resident_bytes > 1 << 20
    assert (found.started, found.failed["stage"]) == ({"stage": 3}, 1)


class OnGpus(FakeEngine):
    """An engine that starts on the CPU alone."""

    fault: Exception = EngineError("it was killed (signal 6).")

    @classmethod
    async def start(cls, spec: EngineSpec, **_: Any) -> "OnGpus":
        cls.waiting.append(engine := cls(spec))
        engine.runs_on = "2 CPU threads"
        if spec.gpu_layers:
            raise cls.fault
        return engine


@pytest.fixture
def gpu(few: Engines, monkeypatch: pytest.MonkeyPatch) -> Engines:
    async def all_layers() -> int:
        return -1

    monkeypatch.setattr(few.hardware, "gpu_layers", all_layers)
    monkeypatch.setattr(engines, "Engine", OnGpus)
    return few


async def test_what_does_not_start_on_the_gpu_is_tried_on_the_cpu(
    gpu: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    found = await gpu.start_stage(Path("x"), PLACE, OTHER, context=64, frames="f32")
    assert [engine.spec.gpu_layers for engine in FakeEngine.waiting] == [-1, 0]
    assert found.runs_on == "2 CPU threads, since it did not start on the GPU"
    assert "on the CPU, since on the GPU: it was killed (signal 6)." in caplog.text


async def test_another_error_is_not_tried_again(
    gpu: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnGpus, "fault", EnvironmentFault("no port"))
    with pytest.raises(EnvironmentFault):
        await gpu.start_stage(Path("x"), PLACE, OTHER, context=64, frames="f32")
    assert len(FakeEngine.waiting) == 1
    assert gpu._starting == set()


async def test_a_node_with_a_part_of_a_ring_keeps_an_engine_in_advance(
    few: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_SPARE_AFTER_S", 0.0)
    monkeypatch.setattr(engines, "_SPARE_INTERVAL_S", 0.01)
    taken: list[Any] = []

    async def begin(cls: type[FakeEngine], spec: EngineSpec, **more: Any) -> FakeEngine:
        taken.append(more["spare"])
        return cls(spec)

    monkeypatch.setattr(FakeEngine, "start", classmethod(begin))
    first = await start(few)
    async with asyncio.timeout(20):
        while (spare := few._spare._process) is None:  # noqa: ASYNC110 - a process starts
            await asyncio.sleep(0.01)
    second = await start(few)
    assert taken == [None, spare]
    assert spare.returncode is None
    async with asyncio.timeout(20):
        while few._spare._process is None:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)
    another = few._spare._process
    first.ended = second.ended = True
    async with asyncio.timeout(20):
        await another.wait()
    assert few._spare.take() is None
    spare.kill()
    await spare.wait()
    await few.stop()


async def test_who_may_get_a_part_has_one_in_advance(
    few: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_SPARE_AFTER_S", 0.0)
    monkeypatch.setattr(engines, "_SPARE_INTERVAL_S", 0.01)
    few.expect(parts=True)
    async with asyncio.timeout(20):
        while (spare := few._spare._process) is None:  # noqa: ASYNC110 - a process starts
            await asyncio.sleep(0.01)
    few.expect(parts=False)
    async with asyncio.timeout(20):
        await spare.wait()
    assert few._spare.take() is None
    await few.stop()


async def test_a_spare_that_died_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Spare()
    kept.wish()
    async with asyncio.timeout(20):
        while kept._process is None:  # noqa: ASYNC110 - a process starts
            await asyncio.sleep(0.01)
    kept._process.kill()
    await kept._process.wait()
    assert kept.take() is None
    await kept.drop()


async def test_an_engine_starts_in_a_process_that_waits(tmp_path: Path) -> None:
    model = bundled.path()
    process = await spawn()
    spec = EngineSpec(role="whole", files=(str(model),), threads=1, cache=str(tmp_path))
    engine = await Engine.start(spec, spare=process)
    assert engine.pid == process.pid
    await engine.stop()
