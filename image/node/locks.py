"""What one process at a time may do on the appliance: locks of files in /run/covey. A shell.

    CHANGING   writes a slot, or the slots' state
    LEAVING    waits until this machine may restart; others of its rings are told so

A lock ends with its process.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import StateError

CHANGING, LEAVING = "update.lock", "leaving.lock"
_WORDS = {
    CHANGING: "another update is being written just now",
    LEAVING: "another command waits until this machine may restart",
}
# Who looks whether a lock is taken has it for a moment.
_TRIES, _PAUSE_S = 20, 0.05


@contextmanager
def alone(run: Path, name: str, tries: int = _TRIES) -> Iterator[None]:
    """Hold a lock of the folder `run`; raises StateError where another process has it."""
    lock = os.open(run / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _locked(lock):
            tries -= 1
            if not tries:
                raise StateError(
                    _WORDS[name], hint="`agent update --status` shows how this machine is."
                )
            time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(lock)


def taken(run: Path, name: str) -> bool:
    """Say whether a process holds a lock just now."""
    try:
        with alone(run, name, tries=1):
            return False
    except StateError:
        return True


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
