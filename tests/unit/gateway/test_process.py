"""How many files the gateway may have open, and how many of them are for clients."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.process import files_for_clients, keep_trimmed, trimmer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4000)
    code = (
        f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, {hard}));"
        "from gateway.process import raise_file_limit as raised;"
        "print(raised(), raised(), r.getrlimit(r.RLIMIT_NOFILE)[0])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    assert said.split() == [str(hard)] * 3


@pytest.mark.parametrize(
    ("files", "max_requests", "clients"),
    [(20_000, 4096, 15_840), (1024, 4096, 448), (1024, 100, 860), (1024, 0, 448), (100, 4096, 25)],
)
def test_some_are_kept_for_replicas(files: int, max_requests: int, clients: int) -> None:
    assert files_for_clients(files, max_requests) == clients


@pytest.mark.skipif(trimmer() is None, reason="the C library gives nothing back when told to")
def test_freed_memory_is_given_back() -> None:
    code = """
from gateway.process import trimmer
def held():
    with open("/proc/self/smaps_rollup") as file:
        return int(file.read().partition("Rss:")[2].split()[0]) / 1024
kept = [bytes(4000 + n % 100) for n in range(20_000)]
kept = kept[::50]  # a page here and there holds all the others
before = held()
trimmer()()
print(before, held())
"""
    before, after = map(float, subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.split())  # fmt: skip
    assert before - after > 30  # of 78 MiB


async def test_it_is_given_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.process.TRIM_EACH_S", 0.001)
    times = asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(keep_trimmed(lambda: loop.call_soon_threadsafe(times.release)))
    async with asyncio.timeout(10):
        for _ in range(3):
            await times.acquire()
    task.cancel()
    await keep_trimmed(None)
