"""The shell on an appliance's second serial line, which only images of `variants.py` have."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from pathlib import Path

_POLL_S = 0.2


class Shell:
    """Speaks with it; connect once the machine runs."""

    def __init__(self, path: Path) -> None:
        """`path` is the unix socket that `arguments` named."""
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(_POLL_S)
        self._sock.connect(str(path))
        self._number = 0

    def send(self, command: str) -> None:
        """Have it run a command, and do not wait."""
        self._sock.sendall(command.encode() + b"\n")

    def run(self, command: str, timeout_s: float) -> str:
        """Return what a command printed; AssertionError if it fails, or takes longer."""
        self._number += 1
        self.send(f"{command}; echo ended-$?-{self._number}")
        end = re.compile(rf"ended-(\d+)-{self._number}\r?\n")
        said = ""
        until = time.monotonic() + timeout_s
        while not (found := end.search(said)):
            assert time.monotonic() < until, f"{command}: no end within {timeout_s:.0f} s: {said}"
            with contextlib.suppress(TimeoutError):
                said += self._sock.recv(65536).decode(errors="replace")
        assert found[1] == "0", f"{command} ended with {found[1]}: {said}"
        return said[: found.start()].replace("\r", "")

    def close(self) -> None:
        """Leave it."""
        self._sock.close()


def arguments(path: Path) -> list[str]:
    """Return QEMU's arguments for a second serial line at a unix socket."""
    return [
        "-chardev", f"socket,id=shell,path={path},server=on,wait=off", "-serial", "chardev:shell",
    ]  # fmt: skip
