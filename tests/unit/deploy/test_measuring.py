"""When devices and links are measured; scripts stand for the child that measures devices."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent import config
from agent.deploy import measuring
from agent.deploy.hardware import Hardware
from agent.deploy.links import Around, Links
from agent.deploy.measuring import Measuring
from agent.engine import speeds
from agent.engine.speeds import CPU, Speed, Speeds
from agent.identity.keys import NodeId, NodeKey

ANNA, BEN = (NodeKey(bytes([number]) * 32).id for number in (1, 2))
SPEED = Speed(CPU, 2e10, 3e11)


class FakeLinks:
    """Links that are all due, and note who was measured."""

    def __init__(self) -> None:
        self.asked: list[NodeId] = []

    def due(self, nodes: list[NodeId]) -> list[NodeId]:
        return sorted(nodes)

    async def measure(self, nodes: list[NodeId], limit_s: float) -> None:
        self.asked += nodes


class Node:
    """One node's measuring; what the child does and how the machine stands can be set."""

    def __init__(self, folder: Path) -> None:
        settings, _ = config.load(Path("/dev/null"), {}, [f"node.state_dir={folder}"])
        self.hardware = Hardware(settings, backends=())
        self.links, self.works, self.load = FakeLinks(), False, 0.0
        self.partners: list[NodeId] = []
        self.traffic: Callable[[NodeId], float | None] = lambda _: 0.0

    def measuring(self, code: str) -> Measuring:
        links: Links = self.links  # type: ignore[assignment]
        return Measuring(
            self.hardware, links, Around(traffic=lambda node: self.traffic(node)),
            working=lambda: self.works, partners=lambda: self.partners,
            command=[sys.executable, "-c", code], load=lambda: self.load,
        )  # fmt: skip

    def keep(self, at: float, *, busy: bool = False) -> None:
        """Have devices measured at that time."""
        speed = msgspec.structs.replace(SPEED, busy=busy)
        path = speeds._path(self.hardware.cache, ())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(Speeds((speed,), at)))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


MARKS = "import sys; open(sys.argv[1] + '.asked', 'a').write(sys.argv[2])"


def asked(node: Node) -> str:
    path = Path(f"{node.hardware.cache}.asked")
    return path.read_text() if path.exists() else ""


async def test_devices_are_measured_once_the_machine_is_quiet_and_nothing_runs(node: Node) -> None:
    found = node.measuring(MARKS)
    node.works = True
    await found.look()
    node.works, node.load = False, 99.0
    await found.look()
    assert asked(node) == ""
    node.load = 0.0
    await found.look()
    assert asked(node) == "0"
    node.keep(time.time())
    await found.look()
    assert asked(node) == "0", "it is known"
    node.keep(time.time() - 3_600, busy=True)
    await found.look()
    assert asked(node) == "00", "the machine was busy"


async def test_measuring_is_given_up_as_soon_as_an_engine_starts(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With all that the child started."""
    pids = tmp_path / "pids"
    started = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(60)\n"
    )
    found = node.measuring(started)
    with caplog.at_level("INFO"):
        looking = asyncio.create_task(found.look())
        async with asyncio.timeout(20):
            while len(pids.read_text().split() if pids.exists() else "") < 2:  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.05)
            node.works = True
            await looking
    assert "given up: an engine starts" in caplog.text
    for pid in map(int, pids.read_text().split()):
        await ended(pid)


async def ended(pid: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                return
            if state in "ZX":
                return
            await asyncio.sleep(0.05)


async def test_what_fails_is_told_and_not_tried_again_at_once(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    found = node.measuring(f"{MARKS}; sys.exit('no memory for it.')")
    await found.look()
    await found.look()
    assert asked(node) == "0"
    assert "the devices could not be measured: no memory for it." in caplog.text


async def test_what_hangs_is_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measuring, "_DEVICES_LIMIT_S", 0.3)
    await node.measuring("import time; time.sleep(60)").look()
    assert "did not end within" in caplog.text


async def test_links_of_rings_are_measured_one_at_a_time_while_they_rest(node: Node) -> None:
    node.keep(time.time())
    found = node.measuring(MARKS)
    node.works = True  # engines run, but nothing flows
    node.partners = [ANNA, BEN]
    await found.look()
    assert len(node.links.asked) == 1
    node.traffic = {ANNA: 1e6, BEN: 100.0}.get
    await found.look()
    assert node.links.asked[1:] == [BEN]
    node.traffic = {ANNA: None, BEN: 5e3}.get
    await found.look()
    assert len(node.links.asked) == 2


async def test_it_waits_after_a_start_and_then_looks_now_and_then(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_FIRST_S", (0.01, 0.02))
    monkeypatch.setattr(measuring, "_LOOK_S", 0.01)
    found = node.measuring(MARKS)
    node.keep(time.time())
    node.partners = [BEN]
    running = asyncio.create_task(found.run())
    async with asyncio.timeout(10):
        while len(node.links.asked) < 3:  # noqa: ASYNC110 - what it did
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])


async def test_facts_and_the_status_tell_what_was_measured(node: Node) -> None:
    facts = await node.hardware.facts()
    assert (facts.decode_bytes_s, facts.prefill_flop_s, facts.measured_at) == (0.0, 0.0, 0.0)
    assert node.hardware.describe()["speed"] is None
    at = time.time() - 3 * 3600
    node.keep(at, busy=True)
    facts = await node.hardware.facts()
    assert (facts.decode_bytes_s, facts.prefill_flop_s, facts.measured_at, facts.busy) == (
        2e10, 3e11, at, True
    )  # fmt: skip
    described = node.hardware.describe()
    assert described["lines"][-1] == (
        "decodes 20 GB/s, prefill 300 GFLOP/s, measured 3 h ago while others were at work"
    )
    assert described["speed"]["found"][0]["device"] == CPU
