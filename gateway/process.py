"""What the gateway asks of the system for its own process: open files, and to take memory back.

A shell, used by `serve.py`. Every connection is an open file, a client's and a replica's alike, and
most systems give a program 1,024 unless it asks for more.

glibc keeps what was freed between pieces that are in use: after 200 slow readers of streams have
left, 304 MiB stay with the program, and 61 MiB once it was told to give them back. (To have larger
pieces mapped one by one instead, M_MMAP_THRESHOLD, changes nothing about that and doubles what a
large body costs.)
"""

from __future__ import annotations

import asyncio
import ctypes
import resource
from collections.abc import Callable

# Where the hard limit is none at all: more connections than one process can serve.
MOST_FILES = 2**20
# The program's own: its log, its store, what it listens on.
OWN_FILES = 64
TRIM_EACH_S = 30.0


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; return how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MOST_FILES if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a sandbox may forbid it
        return soft
    return wanted


def files_for_clients(files: int, max_requests: int) -> int:
    """Return how many of so many files clients may take, so that each request finds a replica.

    `max_requests` is the configuration's, 0 for any number. At least half is the clients'.
    """
    kept = min(max_requests or files, files // 2)
    return max(files - kept - OWN_FILES, files // 4)


async def keep_trimmed(trim: Callable[[], None] | None) -> None:
    """Give freed memory back now and again, until cancelled; at once nothing where `trim` is None.

    It is done in a thread, beside which requests go on.
    """
    while trim is not None:
        await asyncio.sleep(TRIM_EACH_S)
        await asyncio.to_thread(trim)


def trimmer() -> Callable[[], None] | None:
    """Return what gives freed memory back to the system, None where the C library cannot (musl)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None

    def give_back() -> None:
        trim(0)

    return give_back
