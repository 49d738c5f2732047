"""Deployments kept true: what is tried again, what is given up, what comes back after a restart."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent import config
from agent.api import DeployRequest
from agent.deploy import rings
from agent.deploy.heads import Head
from agent.errors import CoveyError, EngineError, ModelError, UsageError
from agent.identity.keys import NodeKey
from agent.models import bundled

OWN = NodeKey(bytes(32)).id


class FakeHead:
    """A head engine that ends when told to."""

    def __init__(self) -> None:
        self.http_port = 7101
        self.end: asyncio.Future[CoveyError | None] = asyncio.get_running_loop().create_future()

    async def wait_ended(self) -> CoveyError | None:
        return await self.end


class FakeBuild:
    """Stands for `Build`: each epoch takes the next outcome of the script."""

    script: list[CoveyError | None]
    made: list["FakeBuild"]

    def __init__(self, wish: DeployRequest, ring: str, epoch: int, **_: Any) -> None:
        self.wish, self.ring, self.epoch = wish, ring, epoch
        self.plan, self.context = None, 64
        self.head: FakeHead | None = None
        self.is_down = False
        type(self).made.append(self)

    async def up(self) -> FakeHead:
        outcome = type(self).script.pop(0)
        if outcome is not None:
            raise outcome
        self.head = FakeHead()
        return self.head

    async def down(self) -> None:
        self.is_down = True


class FakeMesh:
    """Remembers what was announced."""

    def __init__(self) -> None:
        self.announced: list[str] = []

    def known_workers(self) -> int:
        return 2

    async def announce_heads(self, heads: Sequence[Head]) -> None:
        self.announced = [head.model for head in heads]


class FakeEngines:
    """Knows an address."""

    own_address = "fd00::1"


class Setup:
    """Rings on a state directory, with the fakes above."""

    def __init__(self, state: Path) -> None:
        settings, _ = config.load(Path("/dev/null"), {}, [f"node.state_dir={state}"])
        self.mesh = FakeMesh()
        self.rings = rings.Rings(settings, OWN, "box", FakeEngines(), None, self.mesh)  # type: ignore[arg-type] # the fakes above

    async def until(self, phase: str, name: str = "m") -> dict[str, Any]:
        for _ in range(500):
            found = {d["name"]: d for d in self.rings.describe()}[name]
            if found["phase"] == phase:
                return found
            await asyncio.sleep(0)
        raise AssertionError(f"{name} is {found['phase']}, not {phase}: {found['progress']}")


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    real = asyncio.sleep
    monkeypatch.setattr(rings, "Build", FakeBuild)
    monkeypatch.setattr(rings.asyncio, "sleep", lambda _: real(0))
    FakeBuild.script, FakeBuild.made = [], []
    tmp_path.chmod(0o700)
    return Setup(tmp_path)


def wish(**changes: Any) -> DeployRequest:
    return DeployRequest(**{"model": bundled.NAME, "name": "m", "nodes": 2} | changes)


async def test_a_ring_that_answers_is_announced_until_it_is_undeployed(setup: Setup) -> None:
    FakeBuild.script = [None]
    await setup.rings.deploy(wish())
    found = await setup.until("ready")
    assert setup.mesh.announced == ["m"]
    assert found["url"] == "http://[fd00::1]:7101"
    await setup.rings.undeploy("m")
    assert setup.mesh.announced == []
    assert FakeBuild.made[0].is_down
    assert setup.rings.describe() == []


async def test_a_broken_ring_is_built_again_in_a_later_epoch(setup: Setup) -> None:
    FakeBuild.script = [None, EngineError("not yet"), None]
    await setup.rings.deploy(wish())
    await setup.until("ready")
    first = FakeBuild.made[0]
    assert first.head is not None
    first.head.end.set_result(EngineError("stage 1 was killed"))
    for _ in range(500):
        if len(FakeBuild.made) == 3:
            break
        await asyncio.sleep(0)
    await setup.until("ready")
    assert first.is_down
    assert [b.epoch for b in FakeBuild.made] == sorted({b.epoch for b in FakeBuild.made})
    assert len({b.ring for b in FakeBuild.made}) == 1
    await setup.rings.stop()


async def test_while_it_waits_the_reason_is_told_and_nothing_is_announced(setup: Setup) -> None:
    FakeBuild.script = [EngineError("no engine", hint="Look.")] * 400
    await setup.rings.deploy(wish())
    found = await setup.until("waiting")
    assert found["error"] == {"kind": "EngineError", "message": "no engine", "hint": "Look."}
    assert setup.mesh.announced == []
    await setup.rings.stop()


@pytest.mark.parametrize("error", [UsageError("too few layers"), ModelError("too large")])
async def test_a_new_wish_that_cannot_be_is_given_up(setup: Setup, error: CoveyError) -> None:
    FakeBuild.script = [error]
    await setup.rings.deploy(wish())
    assert (await setup.until("failed"))["error"]["message"] == error.message
    assert len(FakeBuild.made) == 1
    await setup.rings.stop()


async def test_wishes_come_back_and_are_not_given_up(setup: Setup, tmp_path: Path) -> None:
    """What ran before may only lack memory or nodes for now: the machines are still starting."""
    FakeBuild.script = [None]
    await setup.rings.deploy(wish())
    await setup.until("ready")
    await setup.rings.stop()
    FakeBuild.script = [ModelError("no memory yet"), None]
    again = Setup(tmp_path)
    again.rings.restore()
    await again.until("ready")
    assert again.mesh.announced == ["m"]
    await again.rings.undeploy("m")
    last = Setup(tmp_path)
    last.rings.restore()
    assert last.rings.describe() == []


async def test_impossible_wishes_are_refused_before_anything_is_stored(
    setup: Setup, tmp_path: Path
) -> None:
    for changes, words in (
        ({"nodes": 4}, "this mesh has 3"),
        ({"context": 10**6}, "was trained for"),
        ({"model": "/none.gguf"}, "there is no model"),
    ):
        with pytest.raises(CoveyError, match=words):
            await setup.rings.deploy(wish(**changes))
    with pytest.raises(UsageError, match="not deployed here"):
        await setup.rings.undeploy("m")
    assert list(tmp_path.iterdir()) == []
    FakeBuild.script = [None]
    await setup.rings.deploy(wish())
    with pytest.raises(UsageError, match="already deployed"):
        await setup.rings.deploy(wish())
    await setup.rings.stop()
