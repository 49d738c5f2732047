"""Run a short piece of this package in a process of its own, since llama.cpp may die or hang.

For `devices.py`, `selftest.py`, `gpu.py` and `speeds.py`: blocking, bounded; what went wrong comes
as words.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What runs in such a process (probe.py), followed by what it shall do.
PROBE = (sys.executable, "-m", "agent.engine.probe")
# By how much more than its time a process may be kept from a CPU and still go on.
_PATIENCE = 5
# As every engine is started (supervisor.py): threads that wait do not spin, numpy's never start.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Outcome:
    """`fault` says what went wrong, as a verb with its object; empty: `output` is what it wrote."""

    output: bytes = b""
    fault: str = ""


def run(command: Sequence[str], timeout_s: float, environment: Mapping[str, str]) -> Outcome:
    """Run a command to its end, `environment` over this process's own.

    What it waited for a CPU is not counted: who is kept from one by others does not hang.
    """
    # The child ends itself as well (`bound`): whoever waits here may be killed.
    began = time.monotonic()
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**_ENVIRONMENT, **os.environ, **environment},
    )  # fmt: skip
    with child:
        left = timeout_s
        while True:
            try:
                output, errors = child.communicate(timeout=left)
                break
            except subprocess.TimeoutExpired:
                passed = time.monotonic() - began
                waited = max(waits_s(child.pid), default=0.0)
                left = min(timeout_s + waited, _PATIENCE * timeout_s) - passed
                if left <= 0:
                    child.kill()
                    return Outcome(fault=f"did not end within {passed:.0f} s")
            except BaseException:
                child.kill()
                raise
    if child.returncode == 0:
        return Outcome(output)
    if child.returncode < 0:
        return Outcome(fault=f"was killed by {signal.Signals(-child.returncode).name}")
    said = errors.decode("utf-8", "replace").strip().splitlines()
    last = said[-1] if said else "no message"
    return Outcome(fault=f"ended with code {child.returncode} ({last})")


def bound(timeout_s: float) -> None:
    """Have the kernel end this process where `run` would have, also inside a driver's code."""
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE * timeout_s)


def waits_s(process: int | str = "self") -> list[float]:
    """Return how long each of a process's threads was ready and had no CPU; empty if untold."""
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/schedstat"):
        try:
            found.append(1e-9 * int(path.read_text().split()[1]))
        except (OSError, IndexError, ValueError):
            continue
    return found
