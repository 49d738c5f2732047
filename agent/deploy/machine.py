"""What this machine can hold: free memory, from the kernel."""

from __future__ import annotations

from pathlib import Path

from agent.errors import EnvironmentFault

_MEMINFO = Path("/proc/meminfo")


def free_bytes(meminfo: Path = _MEMINFO) -> int:
    """Return the memory (bytes) that the kernel would give without swapping: MemAvailable."""
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise EnvironmentFault(
        f"{meminfo} says nothing of MemAvailable.", hint="Covey needs Linux 3.14 or newer."
    )
