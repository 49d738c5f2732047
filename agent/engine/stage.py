"""A middle stage at work: frames in, llama.cpp over its layers, frames out.

For `process.py`, which has loaded the part and joined the ring. One thread, no queue: the order of
frames on the connections is the order of all work, so every stage's KV cache stays the same.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.engine.frames import Frame
from agent.engine.link import Inlet, Lost, Membership, Outlet
from agent.engine.llama import Context
from agent.errors import CoveyError, PeerError


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

    def __init__(self, context: Context, member: Membership, inlet: Inlet, outlet: Outlet) -> None:
        self._context = context
        self._member = member
        self._inlet = inlet
        self._outlet = outlet
        self.stats = StageStats()
        self._decode_cpu_s = 0.0

    def run(self, control: int, stopped: Callable[[], bool]) -> None:
        """Work until `stopped()`, which is asked whenever `control` (a descriptor) is readable.

        Raises Lost when a neighbour is gone or silent, EngineError when llama.cpp fails, PeerError
        for nonsense; the successor has then been told.
        """
        try:
            self._run(control, stopped)
        except Lost as lost:
            self._outlet.fault(lost.stage, lost.reason)
            raise
        except CoveyError as error:
            blamed = self._inlet.stage if isinstance(error, PeerError) else self._member.stage
            reason = f"stage {self._member.stage} failed: {error.message.rstrip('.')}"
            self._outlet.fault(blamed, reason)
            raise

    def _run(self, control: int, stopped: Callable[[], bool]) -> None:
        poll = select.poll()
        poll.register(self._inlet, select.POLLIN)
        poll.register(control, select.POLLIN)
        ping_ms = self._member.ping_s * 1000
        inlet = self._inlet.fileno()
        while True:
            started = time.thread_time()
            self._decode_cpu_s = 0.0
            while (frame := self._inlet.frame()) is not None:
                self._handle(frame)
            ready = {file for file, _ in poll.poll(ping_ms)}
            if control in ready and stopped():
                return
            if inlet in ready:
                self._inlet.pump()
            self._outlet.ping()
            self._inlet.check_alive()
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
