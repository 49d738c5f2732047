"""Stages that lie, lag, freeze or die: every wait ends, and the ring is told who it was."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from agent.engine.frames import (
    HEADER,
    MAGIC,
    Decoder,
    Fault,
    Frame,
    Hello,
    Kind,
    Limits,
    Ping,
    Remove,
    RowType,
    encode_fault,
    encode_frame,
    encode_hello,
    encode_ping,
)
from agent.engine.link import Inlet, Lost, Membership, Outlet
from agent.engine.pipeline import RingPipeline
from agent.engine.stage import Stage
from agent.engine.turns import Batch
from agent.errors import CoveyError, EngineError, PeerError

pytestmark = pytest.mark.slow

N_EMBD = 64
# How long a neighbour may be silent here: long enough for a busy machine, and waited for in vain.
SILENCE_S = 0.6
LIMITS = Limits(N_EMBD, 8, 4)


def member(stage: int, silence_s: float = SILENCE_S) -> Membership:
    return Membership(b"r" * 16, 5, stage, 3, LIMITS, RowType.F32, b"m" * 32, silence_s)


class Doubling:
    """Stands for a part of a model: its rows are those that came, twice as large."""

    fault: EngineError | None = None

    def __init__(self) -> None:
        self.applied: list[object] = []

    def apply(self, operations) -> None:
        self.applied += operations

    def decode_rows(self, rows, sequences, positions, outputs=None):
        if self.fault is not None:
            raise self.fault
        return rows * 2

    def decode_tokens(self, tokens, sequences, positions, outputs):
        return np.tile(tokens[:, None], N_EMBD).astype(np.float32)

    def close(self) -> None:
        pass


class Ends:
    """A stage (or the head) between two neighbours that the test plays."""

    def __init__(self, stage: int, silence_s: float = SILENCE_S) -> None:
        self.before, inner = socket.socketpair()
        outer, self.after = socket.socketpair()
        self.after.settimeout(10)
        self.inlet = Inlet(inner, member(stage, silence_s), "")
        self.outlet = Outlet(outer, member(stage, silence_s), "")
        self.context = Doubling()
        self.stage = Stage(self.context, member(stage, silence_s), self.inlet, self.outlet)  # type: ignore[arg-type]
        self.decoder = Decoder(LIMITS, "the stage")
        self.error: CoveyError | None = None
        self._control = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.stage.run(self._control[0], lambda: True)
        except CoveyError as error:
            self.error = error

    def start(self) -> None:
        self._thread.start()

    def ended(self) -> CoveyError | None:
        """Wait until the stage has ended; why."""
        self._thread.join(30)
        assert not self._thread.is_alive(), "it hangs"
        return self.error

    def next(self):
        """Return what the stage sends next, but pings."""
        while True:
            count = self.after.recv_into(self.decoder.space())
            assert count, "it closed"
            message = self.decoder.advance(count)
            if message is not None and not isinstance(message, Ping):
                return message

    def close(self) -> None:
        os.write(self._control[1], b"x")
        if self._thread.ident is not None:
            self._thread.join(10)
        for end in (self.before, self.after, self.inlet, self.outlet):
            end.close()
        for end in self._control:
            os.close(end)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends(1)
    yield made
    made.close()


def frame(count: int = 2, value: float = 1.0, epoch: int = 5, first: int = 0) -> Frame:
    pairs = np.stack([np.zeros(count), np.arange(first, first + count)], axis=1).astype(np.int32)
    return Frame(epoch, (), pairs, np.full((count, N_EMBD), value, np.float32))


def sent(message: Frame) -> bytes:
    return b"".join(encode_frame(message))


def test_a_stage_hands_on_what_it_computed(ends: Ends) -> None:
    ends.start()
    ends.before.sendall(sent(replace(frame(), operations=(Remove(1),))))
    found = ends.next()
    assert found.operations == (Remove(1),) == tuple(ends.context.applied)
    assert np.array_equal(found.pairs, frame().pairs)
    assert np.array_equal(found.rows, frame(value=2.0).rows)


def test_a_frame_of_an_older_epoch_is_dropped_and_the_ring_goes_on(ends: Ends) -> None:
    ends.start()
    ends.before.sendall(sent(frame(value=7.0, epoch=4)) + sent(frame()))
    assert np.array_equal(ends.next().rows, frame(value=2.0).rows)


def _lie(**changes: object) -> bytes:
    """Return a frame of two rows whose header says something else."""
    said = {"kind": Kind.FRAME, "type": 0, "operations": 0, "rows": 2, "size": 0} | changes
    body = sent(frame())[HEADER.size :]
    size = said["size"] or len(body)
    return HEADER.pack(MAGIC, said["kind"], said["type"], said["operations"], said["rows"], size,
                       5) + body  # fmt: skip


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (sent(frame(epoch=6)), "sent a frame of epoch 6, this is 5"),
        (sent(frame(value=np.nan)), "sent rows that are not finite"),
        (sent(frame(value=np.inf)), "sent rows that are not finite"),
        (_lie(rows=1), "a frame of"),
        (_lie(type=1), "a frame of"),  # rows that are too wide for what it says that they are
        (_lie(rows=9, size=9 * (8 + 4 * N_EMBD)), "9 rows, at most 8 are allowed"),
        (_lie(size=2**32 - 1), "a frame of 4294967295 bytes"),
        (_lie(kind=77), "kind 77"),
        (encode_hello(Hello(b"r" * 16, 5, 0, 1, N_EMBD, b"m" * 32)), "sent a second hello"),
    ],
)
def test_a_lying_stage_is_named_to_the_rest_of_the_ring(ends: Ends, lie: bytes, why: str) -> None:
    ends.start()
    ends.before.sendall(lie)
    fault = ends.next()
    assert isinstance(fault, Fault)
    assert fault.stage == 0 and why in fault.reason
    assert isinstance(ends.ended(), PeerError)


def test_a_stage_that_cannot_decode_names_itself(ends: Ends) -> None:
    ends.context.fault = EngineError("the KV cache is full.")
    ends.start()
    ends.before.sendall(sent(frame()))
    assert ends.next() == Fault(5, 1, "stage 1 failed: the KV cache is full")


def test_a_fault_is_passed_on_as_it_is(ends: Ends) -> None:
    ends.start()
    ends.before.sendall(encode_fault(Fault(5, 0, "the head was lost")))
    assert ends.next() == Fault(5, 0, "the head was lost")
    error = ends.ended()
    assert isinstance(error, Lost) and error.stage == 0


@pytest.mark.parametrize("begun", [0, 10, HEADER.size + 20])
def test_a_killed_stage_is_noticed_even_within_a_message(ends: Ends, begun: int) -> None:
    ends.start()
    ends.before.sendall(sent(frame())[:begun])
    ends.before.close()
    fault = ends.next()
    # "Reset" where a ping was still to be read.
    assert fault.stage == 0 and fault.reason.startswith("the head was lost (")


@pytest.mark.parametrize("begun", [1, HEADER.size + 20])
def test_a_frozen_stage_is_noticed_even_within_a_message(ends: Ends, begun: int) -> None:
    ends.start()
    ends.before.sendall(sent(frame())[:begun])
    fault = ends.next()
    assert fault.stage == 0 and "has been silent for" in fault.reason


def test_a_successor_that_takes_nothing_is_noticed(ends: Ends) -> None:
    ends.start()
    alive, stop = encode_ping(Ping(5)), threading.Event()

    def feed() -> None:
        try:
            while not stop.is_set():
                ends.before.sendall(sent(frame(8)) + alive)
        except OSError:
            pass

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    error = ends.ended()
    stop.set()
    ends.before.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert isinstance(error, Lost)
    assert error.stage == 2 and "too long to take a frame" in error.reason


def test_a_successor_that_takes_a_byte_now_and_then_is_noticed(ends: Ends) -> None:
    """Each byte is progress, but a frame has to be through in a turn of the ring."""
    sender = Outlet(ends.before, member(0, 0.3), "")
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.05):
            with suppress(BlockingIOError):
                ends.inlet._socket.recv(4096)

    thread = threading.Thread(target=drip)
    thread.start()
    ends.before.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    try:
        with pytest.raises(Lost, match="stage 1 took too long"):
            sender._send([bytes(4 << 20)], None)
    finally:
        stop.set()
        thread.join(5)


def test_a_flood_of_small_messages_keeps_a_stage_from_nothing(ends: Ends) -> None:
    """Whoever pings without end must not keep it from hearing that it is to stop."""
    ends.before.setblocking(False)
    stop = threading.Event()

    def flood() -> None:
        pings = encode_ping(Ping(5)) * 100
        while not stop.is_set():
            try:
                ends.before.send(pings)
            except BlockingIOError:
                time.sleep(0)

    thread = threading.Thread(target=flood)
    thread.start()
    ends.start()
    try:
        os.write(ends._control[1], b"x")
        assert ends.ended() is None
    finally:
        stop.set()
        thread.join(5)


class Ring(Ends):
    """The head, whose ring the test plays."""

    def __init__(self, silence_s: float = SILENCE_S) -> None:
        super().__init__(0, silence_s)
        self.head = RingPipeline(
            self.context, self.context, member(0, silence_s), self.inlet, self.outlet  # type: ignore[arg-type]
        )  # fmt: skip

    def close(self) -> None:
        self.head._watch.close()
        super().close()

    def submit(self) -> Frame:
        batch = Batch((), np.array([3, 4], np.int32), np.zeros(2, np.int32),
                      np.arange(2, dtype=np.int32), np.ones(2, np.int8))  # fmt: skip
        self.head.submit(batch)
        return self.next()


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring()
    yield made
    made.close()


def test_the_head_takes_back_what_it_sent(ring: Ring) -> None:
    ring.before.sendall(sent(ring.submit()))
    ring.head.collect()


@pytest.mark.parametrize(
    "wrong",
    [
        frame(1), frame(3), frame(2, first=1), replace(frame(), operations=(Remove(0),)),
        Frame(5, (), np.zeros((0, 2), np.int32), np.zeros((0, N_EMBD), np.float32)),
    ],
)  # fmt: skip
def test_the_head_refuses_what_it_did_not_send(ring: Ring, wrong: Frame) -> None:
    ring.submit()
    ring.before.sendall(sent(wrong))
    with pytest.raises(PeerError, match="stage 2 sent a frame that does not belong here"):
        ring.head.collect()


def test_the_head_waits_for_a_frame_only_so_long_although_everybody_lives(ring: Ring) -> None:
    ring.submit()
    stop = threading.Event()

    def ping() -> None:
        while not stop.wait(SILENCE_S / 6):
            ring.before.sendall(encode_ping(Ping(5)))

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        with pytest.raises(Lost, match="a frame did not come back, although every stage lives"):
            ring.head.collect()
    finally:
        stop.set()
        thread.join(5)


def test_the_head_at_rest_refuses_frames_that_nobody_asked_for_and_notices_silence(
    ring: Ring,
) -> None:
    wake = ring._control[0]
    ring.before.sendall(sent(frame()))
    with pytest.raises(PeerError, match="stage 2 sent a frame that nobody asked for"):
        ring.head.rest(wake)
    assert ring.inlet.frame() is not None
    with pytest.raises(Lost, match="stage 2 has been silent"):
        ring.head.rest(wake)


def test_the_head_at_rest_hears_of_a_fault_and_says_so_again(ring: Ring) -> None:
    ring.before.sendall(encode_fault(Fault(5, 1, "stage 1 was lost")))
    for _ in range(2):
        with pytest.raises(Lost, match="stage 1 was lost"):
            ring.head.rest(ring._control[0])
