"""What the head feeds: the whole model, or the ring of its first part, the stages, its last part.

For `head.py`, from its engine thread only. A pipeline takes batches in order and finishes them in
order; a ring may have several under way, so that its stages work at the same time.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agent.engine.frames import Frame, Ints
from agent.engine.link import Inlet, Lost, Membership, Outlet
from agent.engine.llama import Context
from agent.engine.turns import Batch
from agent.engine.watch import NOTHING, Heard, Watch
from agent.errors import PeerError

# The watch wakes whoever waits when there is a reason.
_WAIT_MS = 5_000


@dataclass
class PipelineStats:
    """What the head has done: counts, seconds in llama.cpp and waiting for frames.

    `own_s` is the CPU seconds of our code around them, as in `stage.StageStats`.
    """

    batches: int = 0
    rows: int = 0
    decode_s: float = 0.0
    waited_s: float = 0.0
    own_s: float = 0.0


class Pipeline(Protocol):
    """Takes batches, and after each `collect` has the logits of the oldest one in `context`.

    `rows` says for people in which type rows leave the head; empty where none do.
    """

    context: Context
    stats: PipelineStats
    depth: int
    rows: str

    @property
    def in_flight(self) -> int:
        """How many batches have been submitted and not collected."""
        ...

    def arrived(self) -> bool:
        """Say whether `collect` would not have to wait; raises EngineError if the ring breaks."""
        ...

    def submit(self, batch: Batch) -> None:
        """Begin a batch; raises EngineError (or PeerError) when the pipeline breaks."""
        ...

    def collect(self, useful: Ints | None = None) -> None:
        """Finish the oldest batch; raises EngineError (or PeerError) when the pipeline breaks.

        Only the `useful` rows have logits then, numbered anew; None: all. The others are about to
        be removed, and need not be in all caches.
        """
        ...

    def rest(self, wake: int) -> None:
        """Wait until `wake` (a descriptor) is readable; raises EngineError if the ring breaks."""
        ...

    def close(self) -> None:
        """Close connections and contexts."""
        ...


class WholePipeline:
    """The whole model in this process."""

    depth = 1
    rows = ""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.stats = PipelineStats()
        self.in_flight = 0

    def arrived(self) -> bool:
        """A batch is computed when it is submitted."""
        return self.in_flight > 0

    def submit(self, batch: Batch) -> None:
        """Apply and decode the batch at once."""
        self.context.apply(batch.operations)
        if len(batch.tokens):
            started = time.perf_counter()
            self.context.decode_tokens(
                batch.tokens, batch.sequences, batch.positions, batch.outputs
            )
            self.stats.decode_s += time.perf_counter() - started
        self.stats.batches += 1
        self.stats.rows += len(batch.tokens)
        self.in_flight += 1

    def collect(self, useful: Ints | None = None) -> None:
        """Nothing is left to do: it is called at once, and no row became useless meanwhile."""
        self.in_flight -= 1

    def rest(self, wake: int) -> None:
        """Wait for `wake`."""
        select.select([wake], [], [])

    def close(self) -> None:
        """Close the context."""
        self.context.close()


class SpreadPipeline(WholePipeline):
    """The whole model over llama.cpp's RPC servers; they are watched while llama.cpp works."""

    def __init__(
        self, context: Context, working: Callable[[], AbstractContextManager[None]]
    ) -> None:
        super().__init__(context)
        self._working = working

    def submit(self, batch: Batch) -> None:
        """Apply and decode the batch at once."""
        with self._working():
            super().submit(batch)


class RingPipeline:
    """The first part here, the stages in between elsewhere, the last part here."""

    def __init__(
        self, first: Context, last: Context, member: Membership, inlet: Inlet, outlet: Outlet,
        heard: Heard = NOTHING,
    ) -> None:  # fmt: skip
        """`heard`: what is known of its links."""
        self.context = last
        self.stats = PipelineStats()
        # One batch in each process keeps them all at work.
        self.depth = member.stages
        self.rows = str(outlet.types)
        self._first = first
        self._member = member
        self._inlet = inlet
        self._outlet = outlet
        self._pending: deque[Batch] = deque()
        self._watch = Watch(member, inlet, outlet, heard)
        self._watch.start()

    @property
    def in_flight(self) -> int:
        """How many batches are under way."""
        return len(self._pending)

    def arrived(self) -> bool:
        """Look whether a frame is here."""
        if not self._pending:
            return False
        if not self._inlet.has_waiting and select.select([self._inlet], [], [], 0)[0]:
            self._inlet.pump()
        return self._inlet.has_waiting

    def submit(self, batch: Batch) -> None:
        """Run the first part and send its rows on."""
        began = time.thread_time()
        self._first.apply(batch.operations)
        pairs = np.stack([batch.sequences, batch.positions], axis=1)
        rows = np.empty((0, self._member.limits.n_embd), np.float32)
        decoding = 0.0
        if len(batch.tokens):
            started, started_cpu = time.perf_counter(), time.thread_time()
            rows = self._first.decode_tokens(
                batch.tokens, batch.sequences, batch.positions, batch.outputs
            )
            decoding = time.thread_time() - started_cpu
            self.stats.decode_s += time.perf_counter() - started
        self._outlet.send(batch.operations, pairs, rows, self._inlet)
        self._pending.append(batch)
        self.stats.own_s += time.thread_time() - began - decoding
        self.stats.batches += 1
        self.stats.rows += len(batch.tokens)

    def collect(self, useful: Ints | None = None) -> None:
        """Wait for the oldest batch to come round and run the last part on its useful rows."""
        began = time.thread_time()
        frame = self._wait()
        batch = self._pending.popleft()
        pairs = frame.pairs
        if not (
            frame.operations == batch.operations
            and np.array_equal(pairs[:, 0], batch.sequences)
            and np.array_equal(pairs[:, 1], batch.positions)
        ):
            raise PeerError(f"{self._inlet.name} sent a frame that does not belong here.")
        self.context.apply(batch.operations)
        decoding = 0.0
        chosen = slice(None) if useful is None else useful
        rows = frame.rows[chosen]
        if len(rows):
            started, started_cpu = time.perf_counter(), time.thread_time()
            self.context.decode_rows(
                rows, batch.sequences[chosen], batch.positions[chosen], batch.outputs[chosen]
            )
            decoding = time.thread_time() - started_cpu
            self.stats.decode_s += time.perf_counter() - started
        self.stats.own_s += time.thread_time() - began - decoding

    def _wait(self) -> Frame:
        began = time.perf_counter()
        poll = select.poll()
        poll.register(self._inlet, select.POLLIN)
        # Who falls silent is the watch's business; a frame that never comes although all of them
        # ping is bounded by a turn of silence for each.
        deadline = time.monotonic() + self._member.turn_s
        while (frame := self._inlet.frame()) is None:
            if poll.poll(min(_WAIT_MS, 1000 * self._member.silence_s)):
                self._inlet.pump()
            if time.monotonic() > deadline:
                raise Lost(
                    self._inlet.stage, "a frame did not come back, although every stage lives"
                )
        self.stats.waited_s += time.perf_counter() - began
        return frame

    def rest(self, wake: int) -> None:
        """Wait for `wake` and listen for faults meanwhile."""
        poll = select.poll()
        poll.register(self._inlet, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            ready = [file for file, _ in poll.poll(_WAIT_MS)]
            if self._inlet.fileno() in ready:
                self._inlet.pump()
                if self._inlet.has_waiting:
                    raise PeerError(f"{self._inlet.name} sent a frame that nobody asked for.")
            if wake in ready:
                return

    def close(self) -> None:
        """Close the connections and the contexts."""
        self._watch.close()
        self._outlet.close()
        self._inlet.close()
        self._first.close()
        self.context.close()
