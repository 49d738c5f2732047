"""What a node says of its devices; scripts stand for the process that looks for GPUs."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from pathlib import Path

import msgspec
import pytest

from agent import config
from agent.deploy import hardware, machine
from agent.deploy.hardware import Hardware
from agent.engine import cpus, selftest
from agent.engine.devices import Device
from agent.engine.gpu import Survey
from agent.errors import EngineError

GIB = 2**30
GPU = Device("CUDA0", "NVIDIA H200", "gpu", 139 * GIB, 140 * GIB)
SECOND = msgspec.structs.replace(GPU, name="CUDA1", free_bytes=60 * GIB)
SHARED = Device("Vulkan0", "Intel Graphics", "igpu", 2**60, 2**60)
SILENT = Device("Metal", "M1", "gpu")
CPU = Device("CPU", "A CPU", "cpu", 1, 2)
DIES = [sys.executable, "-c", "import os; os.abort()"]
HANGS = [sys.executable, "-c", "import time; time.sleep(60)"]


def tells(*devices: Device, fault: str = "") -> list[str]:
    """Return a command that finds these."""
    text = msgspec.json.encode(Survey(devices, fault)).decode()
    return [sys.executable, "-c", f"print({text!r})"]


def made(
    state: Path, command: list[str], *settings: str, backends: tuple[str, ...] = ("cuda",)
) -> Hardware:
    loaded, _ = config.load(Path("/dev/null"), {}, [f"node.state_dir={state}", *settings])
    return Hardware(loaded, command, backends)


@pytest.mark.parametrize(("settings", "backends"), [((), ()), (("engine.gpu=off",), ("cuda",))])
async def test_without_a_gpu_the_hosts_memory_counts_and_nothing_is_started(
    tmp_path: Path, settings: tuple[str, ...], backends: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(machine, "free_bytes", lambda: 5 * GIB)
    monkeypatch.setattr(cpus, "quota", lambda *_: 0.4)
    found = made(tmp_path, DIES, *settings, backends=backends)
    found.begin()
    facts = await found.facts()
    assert (facts.free_bytes, facts.cores) == (5 * GIB, cpus.find().allowed)
    assert facts.cpu_share == found.describe()["cpu_share"] == 0.4
    assert await found.gpu_layers() == 0
    lines = found.describe()["lines"]
    assert lines[:-1] == (
        ["no GPU: engine.gpu is off (llama.cpp's backend cuda is there)"] if backends else []
    )
    assert lines[-1] == "CPU, tried and measured when the first engine starts"
    await found.stop()


@pytest.mark.parametrize(
    ("devices", "free", "line"),
    [
        ((GPU, CPU), 139 * GIB, "CUDA0 NVIDIA H200, 139.0 of 140.0 GiB free"),
        ((GPU, SECOND, CPU), 199 * GIB, "CUDA1 NVIDIA H200, 60.0 of 140.0 GiB free"),
        ((GPU, SHARED, CPU), 139 * GIB, "CUDA0 NVIDIA H200, 139.0 of 140.0 GiB free"),
        # A GPU that shares the host's memory has no more than the host.
        ((SHARED, CPU), 5 * GIB, "Vulkan0 Intel Graphics, 1073741824.0 of 1073741824.0 GiB free"),
        # One that does not tell: the host's is as good a guess as any, and it is said.
        ((SILENT, CPU), 5 * GIB, "Metal M1, does not tell its memory"),
    ],
)
async def test_stages_on_gpus_have_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[Device, ...], free: int,
    line: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(machine, "free_bytes", lambda: 5 * GIB)
    found = made(tmp_path, tells(*devices))
    assert found.describe()["lines"][0] == "llama.cpp's backend cuda is being tried"
    assert await found.gpu_layers() == -1
    assert (await found.facts()).free_bytes == free == found.free_bytes()
    said = found.describe()
    assert line in said["lines"]
    assert said["devices"][-1]["name"] == "CPU"
    await found.stop()


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (tells(GPU, CPU, fault="the self-test on it failed."), "the self-test on it failed."),
        (DIES, "looking for GPUs ended with code -6 (no message)."),
    ],
)
async def test_a_gpu_that_fails_leaves_the_cpu_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    command: list[str], fault: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(hardware, "_FAULT_KEPT_S", -1.0)  # so it is tried each time
    found = made(tmp_path, command)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert (await found.facts()).cores == cpus.find().allowed
    assert await found.gpu_layers() == 0
    assert caplog.text.count(f"stages run on the CPU: {fault}") == 1
    assert found.describe()["lines"][0] == f"no GPU: {fault}"
    await found.stop()


async def test_no_gpu_there_is_said(tmp_path: Path) -> None:
    found = made(tmp_path, tells(CPU))
    assert await found.gpu_layers() == 0
    assert found.describe()["lines"][0] == "no GPU: llama.cpp's backend cuda finds none"
    await found.stop()


async def test_memory_is_asked_for_anew_but_not_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(tmp_path, tells(GPU, CPU))
    assert (await found.facts()).free_bytes == 139 * GIB
    found._command = tells(SECOND, CPU)
    assert (await found.facts()).free_bytes == 139 * GIB
    monkeypatch.setattr(hardware, "_FRESH_S", -1.0)
    assert (await found.facts()).free_bytes == 60 * GIB
    # One that hangs now leaves what was known.
    found._command = HANGS
    assert (await found.facts(0.1)).free_bytes == 60 * GIB
    await found.stop()


async def test_until_it_is_known_a_node_gives_no_facts_and_can_stop(tmp_path: Path) -> None:
    found = made(tmp_path, HANGS)
    found.begin()
    with pytest.raises(EngineError, match="still tries what its GPUs can do"):
        await found.facts(0.1)
    async with asyncio.timeout(10):
        await found.stop()


async def test_what_was_measured_is_shown(tmp_path: Path) -> None:
    found = made(tmp_path, DIES, backends=())
    speeds = ((1, 41.2), (2, 78.4))
    names = ("AVX2", "FMA", "AVX512", "OPENMP")
    for busy, word in ((False, ""), (True, " while others were at work")):
        proof = selftest.Proof(True, selftest.Found(names, speeds, busy), time.time())
        selftest._keep(tmp_path / "engine", proof)
        assert found.describe()["lines"] == [
            f"CPU (AVX2, AVX512), 2 threads (measured{word}: 1: 41, 2: 78 tokens/s)"
        ]
    said = found.describe()
    assert (said["threads"], said["tokens_per_s"]) == (2, {"1": 41.2, "2": 78.4})
    fixed = made(tmp_path, DIES, "engine.threads=7", backends=())
    assert fixed.describe()["lines"] == ["CPU (AVX2, AVX512), 7 threads (engine.threads)"]


async def test_what_engines_would_give_back_counts_on_the_host_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda: 5 * GIB)
    monkeypatch.setattr(machine, "own_bytes", lambda pid: pid * GIB)
    host = made(tmp_path, DIES, backends=())
    assert host.free_without([1, 2]) == 8 * GIB
    on_gpu = made(tmp_path, tells(GPU, CPU))
    await on_gpu.facts()
    assert on_gpu.free_without([1, 2]) == on_gpu.free_bytes() == 139 * GIB
    await on_gpu.stop()


def test_what_a_process_uses_and_none_that_is_gone(tmp_path: Path) -> None:
    resident, cpu_s = machine.used(os.getpid()) or (0, -1.0)
    assert resident > 1 << 20
    assert cpu_s > 0
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "statm").write_text("900 3 1 1 0 80 0\n")
    fields = ["S", *map(str, range(4, 14)), "250", "50", "16"]
    (folder / "stat").write_text(f"7 (odd) name) {' '.join(fields)}\n")
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    assert machine.used(7, tmp_path) == (3 * page, 300 / tick)
    assert machine.used(8, tmp_path) is None
