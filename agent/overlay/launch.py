"""Start a program that ends when its starter ends: `python -I -S launch.py PID PROGRAM ARGUMENT…`.

Used by `userspace.py`, as a program of its own because code between fork and exec is not safe in a
process with threads. The kernel sends SIGTERM when the *thread* that started us ends, so that
wireguard-go removes its interface and its socket even if the agent was killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Tie this process to its parent and become the program. Exits 1 if the parent is gone."""
    parent = int(arguments[1])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the parent has already ended")
    os.execvp(arguments[2], arguments[2:])  # noqa: S606 no shell is meant


if __name__ == "__main__":
    main(sys.argv)
