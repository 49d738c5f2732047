"""A middle stage at work: frames in, llama.cpp over its layers, frames out.

For `process.py`, which has loaded the part and joined the ring. One thread, no queue: the order of
frames on the connections is the order of all work, so every stage's KV cache stays the same. A
second thread watches the neighbours meanwhile (`watch.py`) and touches no frame.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.engine.frames import Frame
from agent.engine.link import Inlet, Membership, Outlet
from agent.engine.llama import Context
from agent.engine.watch import NOTHING, Heard, Watch
from agent.errors import CoveyError

# The watch wakes whoever waits when there is a reason.
_WAIT_MS = 5_000


@dataclass
class StageStats:
    """What a stage has done: counts, seconds in llama.cpp, and CPU seconds of our code around it.

    The latter is CPU time because a send may hand the CPU to the receiver at once.
    """

    frames: int = 0
    rows: int = 0
    decode_s: float = 0.0
    own_s: float = 0.0


class Stage:
    """A part of the model between an inlet and an outlet."""

    def __init__(
        self, context: Context, member: Membership, inlet: Inlet, outlet: Outlet,
        heard: Heard = NOTHING,
    ) -> None:  # fmt: skip
        """`heard`: what is known of its links."""
        self._context = context
        self._heard = heard
        self._member = member
        self._inlet = inlet
        self._outlet = outlet
        self.stats = StageStats()
        self._decode_cpu_s = 0.0

    def run(self, control: int, stopped: Callable[[], bool]) -> None:
        """Work until `stopped()`, which is asked whenever `control` (a descriptor) is readable.

        Raises Lost when a neighbour is gone or silent, EngineError when llama.cpp fails, PeerError
        for nonsense; the neighbours have then been told.
        """
        watch = Watch(self._member, self._inlet, self._outlet, self._heard)
        watch.start()
        try:
            self._run(control, stopped)
        except CoveyError as error:
            # First: a fault that meets one of its pings would be dropped, and nobody said it again.
            watch.close()
            watch.tell(error)
            raise
        finally:
            watch.close()

    def _run(self, control: int, stopped: Callable[[], bool]) -> None:
        poll = select.poll()
        poll.register(self._inlet, select.POLLIN)
        poll.register(control, select.POLLIN)
        inlet = self._inlet.fileno()
        while True:
            started = time.thread_time()
            self._decode_cpu_s = 0.0
            while (frame := self._inlet.frame()) is not None:
                self._handle(frame)
            ready = {file for file, _ in poll.poll(_WAIT_MS)}
            if control in ready and stopped():
                return
            if inlet in ready:
                self._inlet.pump()
            self.stats.own_s += time.thread_time() - started - self._decode_cpu_s

    def _handle(self, frame: Frame) -> None:
        context = self._context
        if frame.operations:
            context.apply(frame.operations)
        pairs = frame.pairs
        rows = frame.rows
        count = len(pairs)
        if count:
            started, started_cpu = time.perf_counter(), time.thread_time()
            rows = context.decode_rows(rows, pairs[:, 0], pairs[:, 1])
            self.stats.decode_s += time.perf_counter() - started
            self._decode_cpu_s += time.thread_time() - started_cpu
        self._outlet.send(frame.operations, pairs, rows)
        self.stats.frames += 1
        self.stats.rows += count
