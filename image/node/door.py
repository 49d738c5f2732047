"""The socket at which this machine is updated and reset: who may open it, may. A shell.

`watching.py` holds it open and starts `updating.py` for each caller, so nothing more is in memory
while nobody calls. Nothing is read here. The agent's user may call too; what it may ask for is
`updating.py`'s to say.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SOCKET = Path("/run/covey/update.sock")
_COMMAND = (sys.executable, "-m", "image.node.updating")
_CALLERS = 4
_AGENT = "covey"


class Door:
    """Listens at a unix socket; use it as a context."""

    def __init__(self, path: Path = SOCKET, command: Sequence[str] = _COMMAND) -> None:
        """Raises OSError where it cannot listen."""
        self._command = command
        self._running: list[subprocess.Popen[bytes]] = []
        path.unlink(missing_ok=True)
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        with contextlib.suppress(KeyError):  # where there is no such user, it is root's alone
            os.chown(path, -1, grp.getgrnam(_AGENT).gr_gid)
        path.chmod(0o660)
        self._sock.listen(_CALLERS)

    def serve(self, for_s: float) -> None:
        """Let callers in for some seconds."""
        until = time.monotonic() + for_s
        while (left := until - time.monotonic()) > 0:
            self._running = [process for process in self._running if process.poll() is None]
            self._sock.settimeout(left)
            with contextlib.suppress(TimeoutError):
                connection, _ = self._sock.accept()
                with connection:
                    connection.settimeout(None)
                    self._let_in(connection)

    def _let_in(self, connection: socket.socket) -> None:
        # One that finds it full is shut out, and says so; each takes memory.
        if len(self._running) >= _CALLERS:
            return
        self._running.append(
            subprocess.Popen(self._command, stdin=connection.fileno(), stdout=subprocess.DEVNULL)
        )

    def close(self) -> None:
        """Listen no more; who was let in goes on."""
        self._sock.close()

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
