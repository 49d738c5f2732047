"""The control groups of this process, of either version: where its bounds stand, and on its memory.

A shell over /proc and /sys. A container's CPUs and memory are bounded so, and /proc shows it the
machine's. Used by `engine/cpus.py` and `deploy/machine.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def folders(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Yield the folders of this process' groups, each before the one that holds it.

    `controller` is version 1's word for it (`cpu`, `memory`); `root` is where /proc and /sys lie.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        folder = base / name.lstrip("/")
        # A container may be told its path on the host; then it sees the base alone.
        for place in (folder, *folder.parents):
            yield place
            if place == base:
                break


def memory_left(root: Path = ROOT) -> int | None:
    """Return the memory (bytes) that the groups still give this process; None without a bound.

    What files fill counts as free, as in MemAvailable.
    """
    left = [found for folder in folders("memory", root) if (found := _left(folder)) is not None]
    return max(0, min(left)) if left else None


def _left(folder: Path) -> int | None:
    second = (folder / "memory.max").exists()
    most, used = (
        ("memory.max", "memory.current") if second
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )  # fmt: skip
    try:
        bound = (folder / most).read_text().strip()
        if bound == "max":
            return None
        return int(bound) - int((folder / used).read_text()) + _files(folder, second=second)
    except (OSError, ValueError):
        return None


def _files(folder: Path, *, second: bool) -> int:
    wanted = {f"{'' if second else 'total_'}{kind}_file" for kind in ("active", "inactive")}
    found = 0
    for line in (folder / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in wanted:
            found += int(value)
    return found
