"""The kernel itself, after everything else."""

from __future__ import annotations

import subprocess
from pathlib import Path

# Documentation/admin-guide/tainted-kernels.rst: it has died (oops), it has warned.
DIED, WARNED = 1 << 7, 1 << 9


def test_the_kernel_complained_of_nothing() -> None:
    taint = int(Path("/proc/sys/kernel/tainted").read_text())
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    assert taint & (DIED | WARNED) == 0, said[-10_000:]
