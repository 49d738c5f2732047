"""Run a short piece of this package in a process of its own, since llama.cpp may die or hang.

For `devices.py`, `selftest.py`, `gpu.py` and `speeds.py`: blocking, bounded; what went wrong comes
as words.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What runs in such a process (probe.py), followed by what it shall do.
PROBE = (sys.executable, "-m", "agent.engine.probe")
# As every engine is started (supervisor.py): threads that wait do not spin, numpy's never start.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Outcome:
    """`fault` says what went wrong, as a verb with its object; empty: `output` is what it wrote."""

    output: bytes = b""
    fault: str = ""


def run(command: Sequence[str], timeout_s: float, environment: Mapping[str, str]) -> Outcome:
    """Run a command to its end, `environment` over this process's own."""
    # The child ends itself as well (`bound`): whoever waits here may be killed.
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=timeout_s, check=False,
            env={**_ENVIRONMENT, **os.environ, **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(fault=f"did not end within {timeout_s:.0f} s")
    if done.returncode == 0:
        return Outcome(done.stdout)
    if done.returncode < 0:
        return Outcome(fault=f"was killed by {signal.Signals(-done.returncode).name}")
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    last = said[-1] if said else "no message"
    return Outcome(fault=f"ended with code {done.returncode} ({last})")


def bound(timeout_s: float) -> None:
    """Have the kernel end this process after so long, also while it is inside a driver's code."""
    signal.setitimer(signal.ITIMER_REAL, timeout_s)


def waited_s() -> float:
    """Return how long this process's threads were ready and had no CPU, in seconds; 0 if untold."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return 1e-9 * total
