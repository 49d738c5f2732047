"""One token's life on two nodes: when it was where, by stamps in both processes.

    python life.py PART CPU EMBD      is the middle stage, and prints its stamps when its ring ends

The clock is the machine's, so stamps of both compare. No HTTP and no sampler: what a ring adds.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.engine.frames import Limits, RowType
from agent.engine.link import Inlet, Lost, Membership, Outlet
from agent.engine.llama import Context, ContextLimits, Weights
from agent.engine.pipeline import RingPipeline
from agent.engine.stage import Stage
from agent.engine.turns import Batch

LIMITS = ContextLimits(2048, 512, 32, 1, flash_attention=True)
# The first tokens read the weights from the disk.
WARM = 20
STEPS = (
    "head: batch to llama.cpp",
    "head: llama.cpp, first part",
    "head: until it sends",
    "to the stage: TCP, and waking it",
    "stage: socket to llama.cpp",
    "stage: llama.cpp",
    "stage: until it sends",
    "to the head: TCP, and waking it",
    "head: socket to llama.cpp",
    "head: llama.cpp, last part",
    "head: until the logits are there",
)


def member(stage: int, n_embd: int) -> Membership:
    """Return a place in the ring of two."""
    limits = Limits(n_embd, LIMITS.n_batch, LIMITS.n_seq)
    return Membership(b"r" * 16, 1, stage, 2, limits, RowType.F32, b"m" * 32, 60.0, 60.0)


class Stamps:
    """Notes the time before and after what is wrapped."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same call, with a stamp before and one after it."""

        def stamped(*arguments: Any) -> Any:
            self.at.append(time.perf_counter())
            result = call(*arguments)
            self.at.append(time.perf_counter())
            return result

        return stamped

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same call, with a stamp before it."""

        def stamped(*arguments: Any) -> Any:
            self.at.append(time.perf_counter())
            return call(*arguments)

        return stamped


def stage(part: Path, cpu: int, n_embd: int) -> None:
    """Be the stage until the head closes its connections."""
    os.sched_setaffinity(0, {cpu})
    context = Context(Weights(part), LIMITS, keeps_rows=True)
    server = socket.create_server(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)
    ends = [server.accept()[0] for _ in range(2)]
    for end in ends:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    inlet, outlet = Inlet(ends[0], member(1, n_embd), ""), Outlet(ends[1], member(1, n_embd), "")
    stamps = Stamps()
    outlet._sent = time.monotonic()  # no ping for five seconds, nor from the head
    inlet.pump = stamps.before(inlet.pump)  # type: ignore[method-assign]
    context._compute = stamps.around(context._compute)
    outlet._send = stamps.around(outlet._send)  # type: ignore[method-assign]
    worker = Stage(context, member(1, n_embd), inlet, outlet)
    try:
        worker.run(os.pipe()[0], lambda: True)
    except Lost:
        print(json.dumps([stamps.at, worker.stats.own_s / worker.stats.frames]), flush=True)


def measure(
    parts: Sequence[Path], cpus: Sequence[int], n_embd: int, tokens: int
) -> tuple[np.ndarray[Any, Any], float, float]:
    """Return s of each of STEPS (tokens, steps), and CPU s a token of our code: head, stage."""
    before = os.sched_getaffinity(0)
    other = subprocess.Popen(
        [sys.executable, __file__, str(parts[1]), str(cpus[1]), str(n_embd)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    port = int(other.stdout.readline())
    ends = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
    for end in ends:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    inlet, outlet = Inlet(ends[1], member(0, n_embd), ""), Outlet(ends[0], member(0, n_embd), "")
    stamps = Stamps()
    os.sched_setaffinity(0, {cpus[0]})
    try:
        first = Context(Weights(parts[0]), LIMITS, keeps_rows=True)
        last = Context(Weights(parts[2]), LIMITS, keeps_rows=False)
        outlet._sent = time.monotonic()
        ring = RingPipeline(first, last, member(0, n_embd), inlet, outlet)
        for context in (first, last):
            context._compute = stamps.around(context._compute)
        inlet.pump = stamps.before(inlet.pump)  # type: ignore[method-assign]
        outlet._send = stamps.around(outlet._send)  # type: ignore[method-assign]
        here = []
        for position in range(tokens + WARM):
            stamps.at = [time.perf_counter()]
            ring.submit(_batch(position))
            ring.collect()
            last.logits()
            here.append([*stamps.at, time.perf_counter()])
        own = ring.stats.own_s / ring.stats.batches
        ring.close()
        there, other_own = json.loads(other.stdout.readline())
    finally:
        os.sched_setaffinity(0, before)
        other.kill()
        other.wait()
    return _steps(np.array(here[WARM:]), _by_frame(there)[WARM:]), own, other_own


def _batch(position: int) -> Batch:
    one = np.zeros(1, np.int32)
    return Batch((), one + 5, one, one + position, np.ones(1, np.int8))


def _by_frame(stamps: list[float]) -> np.ndarray[Any, Any]:
    # The last wake-up is that of the end. A frame of one row wakes a stage once.
    whole = len(stamps) // 5 * 5
    return np.array(stamps[:whole]).reshape(-1, 5)


def _steps(here: np.ndarray[Any, Any], there: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    began, first, first_end, sends, _, woken, last, last_end, end = here.T
    other_woken, middle, middle_end, other_sends, _ = there.T
    stamps = np.stack(
        [began, first, first_end, sends, other_woken, middle, middle_end, other_sends, woken, last,
         last_end, end], axis=1,
    )  # fmt: skip
    return np.diff(stamps, axis=1)


if __name__ == "__main__":
    stage(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
