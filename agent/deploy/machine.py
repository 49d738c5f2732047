"""What this machine can hold: free memory, from the kernel, and what processes would give back."""

from __future__ import annotations

import os
from pathlib import Path

from agent import cgroups
from agent.errors import EnvironmentFault

_MEMINFO = Path("/proc/meminfo")
_PROC = Path("/proc")


def free_bytes(meminfo: Path = _MEMINFO, root: Path = cgroups.ROOT) -> int:
    """Return the memory (bytes) that the kernel would give without swapping.

    MemAvailable, or what a container's bound leaves of it; `root` is where /proc and /sys lie.
    """
    available, left = _available(meminfo), cgroups.memory_left(root)
    return available if left is None else min(available, left)


def _available(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise EnvironmentFault(
        f"{meminfo} says nothing of MemAvailable.", hint="Covey needs Linux 3.14 or newer."
    )


def used(pid: int, proc: Path = _PROC) -> tuple[int, float] | None:
    """Return the memory in use (bytes, mapped files too) and the CPU seconds of a process.

    None where there is none.
    """
    try:
        pages = (proc / str(pid) / "statm").read_text().split()[1]
        # The name in brackets may hold blanks; user and system time are fields 14 and 15.
        times = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:13]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE"), sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def own_bytes(pid: int, proc: Path = _PROC) -> int:
    """Return the memory (bytes) that is free once a process has ended: RssAnon, 0 if it has.

    Mapped files are not counted: MemAvailable has them already.
    """
    try:
        status = (proc / str(pid) / "status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "RssAnon":
            return int(value.split()[0]) * 1024
    return 0
