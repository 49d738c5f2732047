"""The access log: one JSON object a line for each request, written by a thread of its own.

A shell, used by `observe.py`. A disk that is slow, or full, costs lines, never requests: what
waits to be written is bounded, and what found no room is counted.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from gateway.errors import EnvironmentFault

_log = logging.getLogger(__name__)

STDOUT = "-"
# A line has about 400 bytes: some 20,000 of them, seconds at a rate that no gateway has.
MOST_BYTES = 8 * 2**20
# The disk is woken this often at most, and a line is that old at most.
FLUSH_S = 0.1


class AccessLog:
    """Appends lines to the file `path`, or to stdout for `-`; raises EnvironmentFault.

    `alone` is held while it writes, where other processes write there as well: a pipe takes more
    than 4 KiB in pieces.
    """

    def __init__(
        self, path: str, alone: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._path = path
        self._alone = alone
        self._file = _opened(path)
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._bytes = 0
        self._torn = False
        self._failing = False
        self._opens_anew = False
        self._closing = threading.Event()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Have a line written, without its end; never waits for the disk."""
        with self._lock:
            if self._bytes + len(line) > MOST_BYTES:
                self.dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line)

    def reopen(self) -> None:
        """Go on in a new file of the same name: the old one was moved away."""
        self._opens_anew = self._path != STDOUT

    def close(self, timeout_s: float) -> None:
        """Write what waits and end; what a disk does not take within `timeout_s` is lost."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_S):
            self._flush()
        self._flush()
        os.close(self._file)

    def _flush(self) -> None:
        if self._opens_anew:
            self._opens_anew = False
            self._open_anew()
        with self._lock:
            lines, self._lines, self._bytes = self._lines, [], 0
        if not lines:
            return
        # Where a full disk cut a line, the next one begins on a line of its own.
        data = memoryview((b"\n" if self._torn else b"") + b"\n".join(lines) + b"\n")
        written = 0
        try:
            with self._alone():
                while written < len(data):
                    written += os.write(self._file, data[written:])
            self._torn = False
        except OSError as error:
            lost = bytes(data[written:]).count(b"\n") - (self._torn and not written)
            if written:
                self._torn = data[written - 1] != ord("\n")
            with self._lock:
                self.dropped += lost
            if not self._failing:
                _log.error("the access log cannot be written: %s", error.strerror)
            self._failing = True
        else:
            self._failing = False

    def _open_anew(self) -> None:
        try:
            new = _opened(self._path)
        except EnvironmentFault as fault:
            _log.error("the old access log is used on: %s", fault.line())
            return
        os.close(self._file)
        self._file = new


def check(path: str) -> None:
    """Raise EnvironmentFault where the file cannot be opened; empty: there is none."""
    if path:
        os.close(_opened(path))


def _opened(path: str) -> int:
    """Return the descriptor of the file, which others than its group do not read."""
    try:
        if path == STDOUT:
            return os.dup(1)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise EnvironmentFault(
            f"the access log {path} cannot be opened: {error.strerror}",
            hint="Check access_log in the configuration, or --access-log.",
        ) from error
