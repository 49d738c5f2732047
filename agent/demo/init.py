"""Process 1 of a sandbox: private mounts, then one command, whose exit code it returns.

Started by `sandbox.py` as `python -m agent.demo.init WATCH_FD PASSED_FDS COMMAND …`. A process 1
must reap every orphan, and the kernel shields it from signals that it does not handle, so the
command runs as its child. End of file on the watch descriptor (the starter is gone, or was told
to stop) becomes a SIGTERM to the command.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def _prepare() -> None:
    """Hide what tools write under /run (namespace names, WireGuard's sockets) from the machine."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    Path("/run/netns").mkdir()
    Path("/run/wireguard").mkdir()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _reap(child: int) -> int | None:
    """Collect every ended process; return the child's exit code once it is among them."""
    result = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return result
        if pid == 0:
            return result
        if pid == child:
            result = os.waitstatus_to_exitcode(status)


def run(watch: int, passed: Sequence[int], command: Sequence[str]) -> int:
    """Run the command to its end and return its exit code (128 + N for signal N)."""
    _prepare()
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command, pass_fds=passed, stdin=subprocess.DEVNULL)
    waiting = [wake_read, watch]
    code = None
    while code is None:
        ready, _, _ = select.select(waiting, [], [])
        if watch in ready:
            waiting.remove(watch)
            child.send_signal(signal.SIGTERM)
        if wake_read in ready:
            os.read(wake_read, 512)
        code = _reap(child.pid)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    descriptors = [int(text) for text in sys.argv[2].split(",") if text]
    # Not sys.exit: whatever is still alive in here ends with this process, at once.
    os._exit(run(int(sys.argv[1]), descriptors, sys.argv[3:]))
