"""Which CPUs count: affinity, quotas of cgroups of both versions, cores."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from agent.engine import cpus


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def test_this_machine() -> None:
    found = cpus.find()
    assert 1 <= found.cores <= found.allowed <= 8
    assert found.ids == tuple(range(8))


def test_two_threads_of_a_core_are_one_core(tmp_path: Path) -> None:
    root = write(tmp_path, {
        f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}\n"
        for n in range(8)
    })  # fmt: skip
    assert cpus.find(root) == cpus.Cpus(8, 4, tuple(range(8)))


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 8),
        # The bound of a group above counts as well.
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000",
          "sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2),
        # A container that is told its path on the host sees its own group alone.
        ({"proc/self/cgroup": "0::/docker/1\n", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/x\n",
          "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "200000",
          "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000"}, 2),
        ({"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "garbled"}, 8),
    ],
)  # fmt: skip
def test_a_quota_bounds_the_threads(tmp_path: Path, files: dict[str, str], allowed: int) -> None:
    found = cpus.find(write(tmp_path, files))
    assert (found.allowed, found.cores) == (allowed, allowed)


def test_a_quota_is_told_as_it_is(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "45000 100000"})
    assert cpus.quota(root) == 0.45
    assert cpus.quota(tmp_path / "nothing") is None
    assert [cpus.share(quota) for quota in (0.45, 3.5, None)] == [0.45, 1.0, 1.0]


def test_how_long_a_process_was_active_is_that_of_all_its_threads(tmp_path: Path) -> None:
    for thread, said in (("7", "1500000000 500000000 12\n"), ("8", "250000000 0 3\n")):
        folder = tmp_path / "proc/7/task" / thread
        folder.mkdir(parents=True)
        (folder / "schedstat").write_text(said)
    assert cpus.active_s(7, tmp_path) == pytest.approx(2.25)
    assert cpus.active_s(9, tmp_path) == math.inf
    (tmp_path / "proc/7/task/7/schedstat").write_text("nonsense\n")
    assert cpus.active_s(7, tmp_path) == math.inf
    before = cpus.active_s(os.getpid())
    sum(range(10**6))
    assert cpus.active_s(os.getpid()) > before
