"""A running `wireguard-go`: started, or found at work, watched, and ended. Shell; `userspace.py`'s.

It has a session of its own and nothing that ends with the agent, so that it goes on without one.
Its words go to a file in memory that it has open itself: a pipe would end it once nobody reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import subprocess
from pathlib import Path

from agent.errors import EnvironmentFault
from agent.overlay import links

_log = logging.getLogger(__name__)

# More than an hour of it complaining of everything; then it begins anew.
_WORDS_BYTES = 64 * 1024
_LINES_KEPT = 5


class WireguardGo:
    """The process; `stop` ends it."""

    def __init__(
        self, pidfd: int, words: int | None, child: subprocess.Popen[bytes] | None = None
    ) -> None:
        """`words`: a descriptor of what it says. Made by `start` and `adopt`."""
        self._pidfd: int | None = pidfd
        self._words = words
        self._child = child
        self._read_to = 0 if child is not None or words is None else os.fstat(words).st_size

    @classmethod
    def start(cls, program: str, interface: str) -> WireguardGo:
        """Start it for an interface that it is to make."""
        words = os.memfd_create("wireguard-go")
        try:
            # What it writes goes behind the last word, also after somebody made the file empty.
            fcntl.fcntl(words, fcntl.F_SETFL, os.O_APPEND)
            child = subprocess.Popen(
                [program, "-f", interface], stdin=subprocess.DEVNULL, stdout=words,
                stderr=words, cwd="/", start_new_session=True,
                env={"PATH": os.environ.get("PATH", os.defpath), "LOG_LEVEL": "error"},
            )  # fmt: skip
            return cls(os.pidfd_open(child.pid), words, child)
        except BaseException:
            os.close(words)
            raise

    @classmethod
    def adopt(cls, pid: int, pidfd: int) -> WireguardGo:
        """Go on with one that another agent started; takes `pidfd` over."""
        words = None
        with contextlib.suppress(OSError):  # not ours to read
            words = os.open(f"/proc/{pid}/fd/1", os.O_RDWR | os.O_CLOEXEC)
        if words is not None and "/memfd:" not in str(Path(f"/proc/self/fd/{words}").readlink()):
            os.close(words)
            words = None
        return cls(pidfd, words)

    @property
    def adopted(self) -> bool:
        """Whether another agent started it."""
        return self._child is None

    def ended(self, patience_s: float = 0.0) -> str | None:
        """Say how the process ended, None while it runs."""
        if self._pidfd is None:
            return "wireguard-go ended"
        if not select.select([self._pidfd], [], [], patience_s)[0]:
            return None
        if self._child is None:
            return "wireguard-go ended"
        code = self._child.wait()
        return (
            f"wireguard-go ended (signal {-code})" if code < 0 else f"wireguard-go ended ({code})"
        )

    def hear(self) -> list[str]:
        """Return what it said since the last call, and log it at level debug."""
        if self._words is None:
            return []
        data = os.pread(self._words, _WORDS_BYTES, self._read_to)
        self._read_to += len(data)
        if self._read_to > _WORDS_BYTES:
            os.ftruncate(self._words, 0)
            self._read_to = 0
        lines = [line.strip() for line in data.decode(errors="replace").splitlines()]
        # Not its advertisement.
        said = [line for line in lines if line and not line.startswith(("│", "┌", "└"))]
        for line in said:
            _log.debug("wireguard-go: %s", line)
        return said

    def last_words(self) -> str:
        """Return the last that it said since it was asked before, on one line."""
        return "; ".join(self.hear()[-_LINES_KEPT:])

    def stop(self) -> None:
        """End the process, by force if it does not end by itself."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._pidfd is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, number)
            if self.ended(links.SETTLE_S) is not None:
                self._let_go()
                return
        raise EnvironmentFault("wireguard-go does not end, not even when killed")

    def _let_go(self) -> None:
        """Close what is open here; the process is not touched."""
        self.hear()
        for descriptor in (self._pidfd, self._words):
            if descriptor is not None:
                os.close(descriptor)
        self._pidfd = self._words = None
