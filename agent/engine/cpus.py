"""Which CPUs this process may use: its affinity, its cgroups' quota, and how many cores they are.

For the self-test, which measures how many threads llama.cpp should have (`threads.py`), and for
what a node tells others of itself.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from agent import cgroups

_ROOT = cgroups.ROOT


@dataclass(frozen=True)
class Cpus:
    """`allowed`: threads that can run at once; `cores`: on how many cores; `ids`: where."""

    allowed: int
    cores: int
    ids: tuple[int, ...]


def find(root: Path = _ROOT) -> Cpus:
    """Return the CPUs that this process may use; `root` is where /proc and /sys lie."""
    ids = tuple(sorted(os.sched_getaffinity(0)))
    allowed = len(ids)
    bound = quota(root)
    if bound is not None:
        allowed = max(1, min(allowed, math.ceil(bound)))
    return Cpus(allowed, min(allowed, _cores(root, ids)), ids)


def _cores(root: Path, ids: tuple[int, ...]) -> int:
    """Return how many physical cores these CPUs lie on; one each where the kernel does not say."""
    found = set()
    for cpu in ids:
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            found.add(path.read_text().strip())
        except OSError:
            found.add(str(cpu))
    return len(found)


def quota(root: Path = _ROOT) -> float | None:
    """Return how many CPUs' time the cgroups of this process leave it; None without a bound."""
    found = map(_quota_of, cgroups.folders("cpu", root))
    return min((bound for bound in found if bound is not None), default=None)


def share(quota: float | None) -> float:
    """Return what such a quota leaves of one CPU to a thread that goes on, at most all of it."""
    return min(1.0, quota) if quota else 1.0


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError):
        return None


def active_s(pid: int, root: Path = _ROOT) -> float:
    """Return for how long the threads of a process have run, or waited for a CPU (seconds).

    One that stands still adds nothing to it, one that other work keeps from the CPU does. Infinite
    where the kernel does not say.
    """
    found = 0
    try:
        for path in (root / f"proc/{pid}/task").glob("*/schedstat"):
            ran, waited, *_ = path.read_text().split()
            found += int(ran) + int(waited)
    except (OSError, ValueError):
        return math.inf
    return found / 1e9 if found else math.inf
