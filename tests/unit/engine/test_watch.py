"""Stages that fall silent, at every place of a ring, while others compute: the right one is named.

The stages are threads of this process over loopback TCP; a proxy stands on every connection.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from agent.engine.frames import (
    Decoder,
    Echo,
    Fault,
    Frame,
    Limits,
    Ping,
    RowType,
    encode_echo,
    encode_fault,
    encode_frame,
    encode_ping,
)
from agent.engine.link import Inlet, Lost, Membership, Outlet
from agent.engine.pipeline import RingPipeline
from agent.engine.silence import Known
from agent.engine.stage import Stage
from agent.engine.turns import Batch
from agent.engine.watch import NOTHING, Heard, Watch
from agent.errors import CoveyError, EngineError

pytestmark = pytest.mark.slow

N_EMBD = 64
LIMITS = Limits(N_EMBD, 4096, 4)
# Long enough for a busy machine to ping in, and waited for in vain.
SILENCE_S = 1.0
# What must come, comes within this; what must not come is not waited for so long.
PATIENCE_S = 20.0


def member(stage: int, stages: int, silence_s: float = SILENCE_S) -> Membership:
    return Membership(b"r" * 16, 5, stage, stages, LIMITS, RowType.F32, b"m" * 32, silence_s)


def tcp() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


class Part:
    """Stands for a part of a model; it computes until `may_end` while that is not set."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.may_end.set()
        self.computing = threading.Event()

    def apply(self, operations) -> None:
        pass

    def decode_rows(self, rows, sequences, positions, outputs=None):
        self.computing.set()
        assert self.may_end.wait(PATIENCE_S)
        return rows

    def decode_tokens(self, tokens, sequences, positions, outputs):
        return np.tile(tokens[:, None], N_EMBD).astype(np.float32)

    def close(self) -> None:
        pass


def frame(count: int = 2) -> Frame:
    pairs = np.stack([np.zeros(count), np.arange(count)], axis=1).astype(np.int32)
    return Frame(5, (), pairs, np.ones((count, N_EMBD), np.float32))


def batch() -> Batch:
    return Batch((), np.array([3, 4], np.int32), np.zeros(2, np.int32),
                 np.arange(2, dtype=np.int32), np.ones(2, np.int8))  # fmt: skip


class Proxy:
    """Passes on between two stages, both ways, until it falls silent without ending anything."""

    def __init__(self) -> None:
        self.near, near = tcp()
        self.far, far = tcp()
        self.ends = (near, far)
        self._stop = threading.Event()
        self.silent = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        near, far = self.ends
        while not self._stop.is_set():
            ready, _, _ = select.select(self.ends, [], [], 0.05)
            if self.silent.is_set():
                self._stop.wait()
                return
            for end in ready:
                other = far if end is near else near
                with suppress(OSError):
                    if data := end.recv(1 << 20):
                        other.sendall(data)
                        continue
                with suppress(OSError):
                    other.shutdown(socket.SHUT_WR)
                self._stop.wait(0.05)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        for end in self.ends:
            end.close()


class Ring:
    """So many processes: the head here, the others as threads."""

    def __init__(self, stages: int, silence_s: float = SILENCE_S) -> None:
        self.proxies = [Proxy() for _ in range(stages)]
        self.parts = [Part() for _ in range(stages)]
        self.errors: list[CoveyError | None] = [None] * stages
        self._control = os.pipe()
        members = [member(stage, stages, silence_s) for stage in range(stages)]
        inlets = [Inlet(self.proxies[n - 1].far, members[n], "") for n in range(stages)]
        outlets = [Outlet(self.proxies[n].near, members[n], "") for n in range(stages)]
        self._ends = [*inlets, *outlets]
        self.threads = [
            threading.Thread(
                target=self._be,
                args=(n, Stage(self.parts[n], members[n], inlets[n], outlets[n])),  # type: ignore[arg-type]
                daemon=True,
            )
            for n in range(1, stages)
        ]
        part = self.parts[0]
        self.head = RingPipeline(part, part, members[0], inlets[0], outlets[0])  # type: ignore[arg-type]
        for thread in self.threads:
            thread.start()

    def _be(self, number: int, stage: Stage) -> None:
        try:
            stage.run(self._control[0], lambda: True)
        except CoveyError as error:
            self.errors[number] = error

    def freeze(self, stage: int) -> None:
        """Be silent on both sides of a stage."""
        self.proxies[stage - 1].silent.set()
        self.proxies[stage].silent.set()

    def kill(self, stage: int) -> None:
        """End a stage's connections, as its neighbours see it; it can say nothing any more."""
        self.freeze(stage)
        for end in (self.proxies[stage - 1].ends[0], self.proxies[stage].ends[1]):
            end.shutdown(socket.SHUT_RDWR)

    def lost(self) -> Lost:
        """Return what the head, at rest, finds broken."""
        read, write = os.pipe()
        try:
            with pytest.raises(Lost) as caught:
                self.head.rest(read)
            return caught.value
        finally:
            os.close(read)
            os.close(write)

    def close(self) -> None:
        for part in self.parts:
            part.may_end.set()
        self.head._watch.close()
        os.write(self._control[1], b"x")
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "it hangs"
        for end in self._ends:
            end.close()
        for proxy in self.proxies:
            proxy.close()
        for file in self._control:
            os.close(file)


@contextmanager
def ring(stages: int, silence_s: float = SILENCE_S) -> Iterator[Ring]:
    made = Ring(stages, silence_s)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    ("stages", "frozen"), [(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3)]
)  # fmt: skip
def test_whoever_is_frozen_is_named_by_the_head(stages: int, frozen: int) -> None:
    with ring(stages) as made:
        made.head.submit(batch())
        made.head.collect()
        made.freeze(frozen)
        lost = made.lost()
        assert lost.stage == frozen
        assert f"stage {frozen} has been silent for" in lost.reason


@pytest.mark.parametrize(("frozen", "computing"), [(1, 2), (2, 1), (2, 3), (3, 1)])
def test_who_is_frozen_is_found_while_others_compute(frozen: int, computing: int) -> None:
    """The one that computes does not end before the head knows."""
    with ring(4, 2.5 * SILENCE_S) as made:  # the others' threads want a CPU meanwhile
        busy = made.parts[computing]
        busy.may_end.clear()
        made.head.submit(batch())
        if frozen > computing:
            assert busy.computing.wait(PATIENCE_S)
        made.freeze(frozen)
        assert made.lost().stage == frozen


def test_a_fault_is_passed_on_though_a_ping_is_just_said(monkeypatch) -> None:
    """The other way round leads past stage 1; without this word, stage 3's silence is blamed."""
    speaking, heard = threading.Event(), threading.Event()

    def ping(outlet: Outlet) -> None:
        with outlet._voice.alone():
            if outlet.stage == 0:
                speaking.set()
                heard.wait(0.5)

    monkeypatch.setattr(Outlet, "ping", ping)
    with ring(4, 5 * SILENCE_S) as made:
        assert speaking.wait(PATIENCE_S)
        made.freeze(1)
        made.proxies[2].ends[1].sendall(encode_fault(Fault(5, 1, "stage 1 is broken")))
        assert made.lost().stage == 1
        heard.set()


def test_a_stage_that_computes_for_longer_than_the_silence_is_not_lost() -> None:
    with ring(3, 0.6) as made:
        busy = made.parts[1]
        busy.may_end.clear()
        made.head.submit(batch())
        assert busy.computing.wait(PATIENCE_S)
        time.sleep(1.5)
        busy.may_end.set()
        made.head.collect()
        assert made.errors == [None] * 3


def test_a_dead_stage_is_told_past_one_that_computes() -> None:
    with ring(4) as made:
        busy = made.parts[1]
        busy.may_end.clear()
        made.head.submit(batch())
        assert busy.computing.wait(PATIENCE_S)
        made.kill(3)
        lost = made.lost()
        assert lost.stage == 3 and "stage 3 was lost (" in lost.reason
        busy.may_end.set()
        made.threads[1].join(PATIENCE_S)
        assert isinstance(made.errors[2], Lost) and made.errors[2].stage == 3


class Watched:
    """A stage's two connections under watch, whose neighbours the test plays."""

    def __init__(
        self, silence_s: float = SILENCE_S, heard: Heard = NOTHING,
        addresses: tuple[str, str] = ("", ""),
    ) -> None:  # fmt: skip
        self.before, inner = tcp()
        outer, self.after = tcp()
        for end in (self.before, self.after):
            end.settimeout(PATIENCE_S)
        self.inlet = Inlet(inner, member(1, 3, silence_s), addresses[0])
        self.outlet = Outlet(outer, member(1, 3, silence_s), addresses[1])
        self.watch = Watch(member(1, 3, silence_s), self.inlet, self.outlet, heard)
        self.watch.start()
        self._decoders = {end: Decoder(LIMITS, "it") for end in (self.before, self.after)}

    def next(self, end: socket.socket):
        """Return the next message at a neighbour's end."""
        decoder = self._decoders[end]
        while True:
            count = end.recv_into(decoder.space())
            assert count, "it closed"
            if (message := decoder.advance(count)) is not None:
                return message

    def fault(self, end: socket.socket) -> Fault:
        while isinstance(found := self.next(end), Ping):
            pass
        assert isinstance(found, Fault)
        return found

    def ended(self) -> CoveyError:
        """Return why the watch has ended."""
        self.watch._thread.join(PATIENCE_S)
        with pytest.raises(CoveyError) as caught:
            self.inlet.pump()
        return caught.value

    def close(self) -> None:
        self.watch.close()
        for end in (self.before, self.after, self.inlet, self.outlet):
            end.close()


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.close()


def test_what_is_learned_of_links_is_told_and_what_was_known_counts() -> None:
    told: list[dict[str, Known]] = []
    late = Known(300.0, 0.9, 0.1, time.monotonic())
    made = Watched(30.0, Heard({"fd00::1": late}, told.append), ("fd00::1", "fd00::2"))
    try:
        for _ in range(4):
            made.before.sendall(encode_ping(Ping(5)))
            time.sleep(0.05)
        assert made.watch._before.bound_s() > 10
        assert told == []
    finally:
        made.close()
    (found,) = told
    assert found.keys() == {"fd00::1"}, "nothing was heard of the other"
    assert 0.8 < found["fd00::1"].late < 0.9
    made.watch.close()
    assert len(told) == 1


def test_both_neighbours_are_pinged(watched: Watched) -> None:
    for end in (watched.before, watched.after):
        assert [watched.next(end) for _ in range(3)] == [Ping(5)] * 3


def test_a_fault_is_passed_on_both_ways_whichever_it_comes(watched: Watched) -> None:
    watched.after.sendall(encode_fault(Fault(5, 2, "stage 2 failed: no memory")))
    assert watched.fault(watched.before) == Fault(5, 2, "stage 2 failed: no memory")
    error = watched.ended()
    assert isinstance(error, Lost) and error.stage == 2


def test_a_fault_behind_a_frame_outlives_the_connection(watched: Watched) -> None:
    said = encode_fault(Fault(5, 0, "the head was lost"))
    watched.before.sendall(b"".join(encode_frame(frame())) + said)
    watched.before.close()
    assert watched.fault(watched.after) == Fault(5, 0, "the head was lost")
    assert watched.inlet.frame() is not None  # what came before is not lost


def test_a_successor_that_spoke_and_falls_silent_is_lost(watched: Watched) -> None:
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(SILENCE_S / 10):
            watched.before.sendall(encode_ping(Ping(5)))

    thread = threading.Thread(target=live)
    thread.start()
    try:
        watched.after.sendall(encode_ping(Ping(5)))
        found = watched.fault(watched.before)
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert found.stage == 2 and "has been silent for" in found.reason


def test_what_the_successor_said_before_it_went_is_why_no_frame_can_be_sent(
    watched: Watched,
) -> None:
    watched.after.sendall(encode_fault(Fault(5, 0, "the head was lost")))
    watched.after.close()
    assert watched.fault(watched.before).stage == 0
    watched.watch._thread.join(PATIENCE_S)
    with pytest.raises(Lost, match="the head was lost"):
        watched.outlet.send((), frame().pairs, frame().rows)


def test_who_sends_is_told_why_even_before_the_watch_is() -> None:
    made = Watched()
    try:
        made.watch.close()
        made.after.sendall(encode_fault(Fault(5, 0, "the head was lost")))
        made.after.close()
        big = frame(4096)
        with pytest.raises(Lost, match="the head was lost"):
            for _ in range(100):
                made.outlet.send((), big.pairs, big.rows)
    finally:
        made.close()


def test_a_successor_that_sends_nonsense_is_named(watched: Watched) -> None:
    watched.after.sendall(b"GET / HTTP/1.1\r\nHost: covey\r\n\r\n")
    found = watched.fault(watched.before)
    assert found.stage == 2 and "what no stage sends" in found.reason


def test_a_predecessor_with_no_room_to_ping_is_not_judged(watched: Watched) -> None:
    """Its frame fills what this stage has not read; its own predecessor knows whether it lives."""
    watched.before.settimeout(0.5)
    with suppress(TimeoutError):
        while True:
            watched.before.sendall(b"".join(encode_frame(frame(4096))))
    watched.watch._thread.join(2 * SILENCE_S)
    assert watched.watch._thread.is_alive()
    # Once it is read the silence counts.
    stop = time.monotonic() + PATIENCE_S
    with pytest.raises(Lost, match="the head has been silent"):
        while time.monotonic() < stop:
            watched.inlet.pump()
            while watched.inlet.frame() is not None:
                pass


def test_no_ping_stands_within_a_frame(watched: Watched) -> None:
    """Frames that take longer than pings come whole, while the successor reads slowly."""
    wanted = frame(4096)
    sender = threading.Thread(
        target=lambda: [watched.outlet.send((), wanted.pairs, wanted.rows, None) for _ in range(8)]
    )
    watched.after.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(SILENCE_S / 10):
            watched.before.sendall(encode_ping(Ping(5)))

    alive = threading.Thread(target=live)
    alive.start()
    sender.start()
    frames = 0
    try:
        while frames < 8:
            time.sleep(0.0005)
            found = watched.next(watched.after)
            if isinstance(found, Frame):
                frames += 1
                assert np.array_equal(found.rows, wanted.rows)
            else:
                assert found == Ping(5)
    finally:
        sender.join(PATIENCE_S)
        stop.set()
        alive.join(PATIENCE_S)


def test_who_sends_to_a_frozen_successor_is_told_by_its_silence() -> None:
    made = Watched()
    try:
        made.after.sendall(encode_ping(Ping(5)))
        stop = threading.Event()

        def live() -> None:
            while not stop.wait(SILENCE_S / 10):
                with suppress(OSError):
                    made.before.sendall(encode_ping(Ping(5)))

        thread = threading.Thread(target=live)
        thread.start()
        big = frame(4096)
        with pytest.raises(EngineError, match="stage 2 has been silent"):
            for _ in range(100):
                made.outlet.send((), big.pairs, big.rows)
        stop.set()
        thread.join(PATIENCE_S)
    finally:
        made.close()


def test_a_probe_is_answered_by_its_echo_and_not_by_pings(watched: Watched) -> None:
    watched.watch.close()
    watched.after.sendall(encode_ping(Ping(5)) + encode_echo(Echo(5)))
    assert select.select([watched.outlet], [], [], PATIENCE_S)[0]
    assert not watched.outlet.echoed()
    assert watched.outlet.echoed()


def test_nothing_follows_a_frame_that_was_cut_short(watched: Watched) -> None:
    watched.watch.close()
    with pytest.raises(ValueError), watched.outlet._voice.alone():
        raise ValueError
    assert not watched.outlet._voice.say(b"x")
