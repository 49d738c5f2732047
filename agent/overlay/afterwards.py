"""Takes away the interface of an agent that was killed and does not come back.

    python -I -S afterwards.py INTERFACE ALIAS SECONDS

Started beside each device (`Afterwards`), in a session of its own. It reads from a pipe whose other
end only the agent has: a byte means that the agent took the device away itself, the pipe's end that
the agent is gone. Then it waits so many seconds, counted while this machine sleeps as well. An
agent that adopts the interface meanwhile gives it another alias and has its own such process, and
this one is done. wireguard-go ends, with its socket, when its interface goes.

As a program it loads next to nothing: it is there for as long as the agent is.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from agent import rtnetlink

_LOOK_S = 1.0
_END_TIMEOUT_S = 3.0


class Afterwards:
    """That process, for one device; `tend` starts it again if somebody ended it."""

    def __init__(self, interface: str, alias: str, seconds: float) -> None:
        program = [sys.executable, "-I", "-S", __file__]
        self._command = [*program, interface, alias, str(seconds)]
        self._end: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def tend(self) -> None:
        """See that it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self._let_go()
        ours, self._end = os.pipe()
        try:
            self._process = subprocess.Popen(
                self._command, stdin=ours, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={}, cwd="/", start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(ours)

    def stop(self) -> None:
        """End it: the device is gone. Harmless when it is not there."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._end is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._end, b".")
        self._let_go()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_END_TIMEOUT_S)

    def _let_go(self) -> None:
        if self._end is not None:
            os.close(self._end)
            self._end = None


def main(arguments: list[str]) -> None:
    """Wait for the agent's end, then for the time to be over or another agent to come."""
    interface, alias, seconds = arguments[1], arguments[2], float(arguments[3])
    if os.read(0, 1):
        return
    over_at = _clock() + seconds
    while rtnetlink.alias_of(interface) == alias:
        left_s = over_at - _clock()
        if left_s <= 0:
            rtnetlink.delete_link(interface)
            return
        time.sleep(min(_LOOK_S, left_s))


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    main(sys.argv)
