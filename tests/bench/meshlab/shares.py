"""Control groups for the nodes of a bench: each has a quota of one CPU, whatever others leave idle.

Made outside the sandbox, so that they are removed however that ends; used inside.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ringlab.nodes import CGROUPS, CPUS, PERIOD_US

# Names the folder of the groups, inside the sandbox.
FOLDER = "COVEY_BENCH_SHARES"
_ENDS_S = 10.0
# Agent, WireGuard and engines have a session each, and where the kernel groups by sessions
# (autogroup) each would have a weight of its own; in a group of theirs they have it together.
_WEIGHT = 4 * 1024


@contextmanager
def made(names: Sequence[str]) -> Iterator[None]:
    """Make a group for each node; what runs in them has ended when the block is left."""
    if not CGROUPS.is_dir():
        raise SystemExit(f"shares of a CPU need the cpu controller of cgroup v1 at {CGROUPS}")
    folder = Path(tempfile.mkdtemp(prefix="covey-bench-", dir=CGROUPS))
    groups = [folder / name for name in names]
    for group in groups:
        group.mkdir()
        (group / "cpu.shares").write_text(str(_WEIGHT))
    (folder / "cpu.shares").write_text(str(len(groups) * _WEIGHT))
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        deadline = time.monotonic() + _ENDS_S
        for group in [*groups, folder]:
            # The last processes of a sandbox end a moment after it.
            while group.exists() and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    group.rmdir()
                time.sleep(0.05)


def _group(name: str) -> Path:
    return Path(os.environ[FOLDER]) / name


def limit(name: str, share: float) -> None:
    """Give a node this share of its CPU from now on."""
    group = _group(name)
    (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
    (group / "cpu.cfs_quota_us").write_text(str(int(share * PERIOD_US)))


def command(name: str, number: int, command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` as a part of this node, on its CPU."""
    enter = 'echo $$ > "$0" && exec "$@"'
    cpu = str(CPUS[number % len(CPUS)])
    return ["sh", "-c", enter, str(_group(name) / "cgroup.procs"), "taskset", "-c", cpu, *command]
