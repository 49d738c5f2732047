"""Which type rows travel in, and how a link is measured when a ring is joined."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from agent.engine import calibrate
from agent.engine.frames import Limits, RowType
from agent.engine.join import Patience
from agent.engine.link import Inlet, Lost, Membership, Outlet
from agent.engine.row_types import LinkTypes

F32, F16, Q8 = RowType.F32, RowType.F16, RowType.Q8
MBIT = 1e6 / 8


@pytest.mark.parametrize(
    ("n_embd", "mbit", "few", "many"),
    [
        (4096, 1000, F32, F32),
        (4096, 500, F32, F16),  # 16 KiB take 0.26 ms
        (4096, 100, F16, Q8),
        (4096, 10, Q8, Q8),
        (1024, 150, F32, F32),
        (1024, 10, Q8, Q8),
        (1000, 1, F16, F16),  # no blocks of 32
    ],
)
def test_the_most_exact_type_that_is_quick_enough(
    n_embd: int, mbit: float, few: RowType, many: RowType
) -> None:
    types = LinkTypes(n_embd, None, mbit * MBIT)
    assert [types.of(1), types.of(512)] == [few, many]


def test_more_bandwidth_never_makes_rows_less_exact_and_more_rows_never_more() -> None:
    for rows in (1, 3, 4, 5, 16, 512):
        found = [LinkTypes(2048, None, m * MBIT).of(rows) for m in (0.1, 1, 10, 50, 100, 200, 1e4)]
        assert found == sorted(found, reverse=True)
    for mbit in (1, 20, 60, 150, 1000):
        types = LinkTypes(2048, None, mbit * MBIT)
        found = [types.of(rows) for rows in (1, 2, 4, 8, 64, 512)]
        assert found == sorted(found)


def test_the_operators_word_decides_and_is_said() -> None:
    for row_type in RowType:
        types = LinkTypes(4096, row_type, 1.0)
        assert {types.of(1), types.of(512)} == {row_type}
        assert str(types) == f"{row_type.name.lower()} (as set)"
    assert str(LinkTypes(4096, None, 100 * MBIT)) == "f16, prompts q8 (100 Mbit/s)"
    assert str(LinkTypes(4096, None, 9400 * MBIT)) == "f32 (9,400 Mbit/s or more)"


def member(stage: int, row_type: RowType | None = None) -> Membership:
    limits = Limits(64, 8, 4)
    return Membership(b"r" * 16, 1, stage, 3, limits, row_type, b"m" * 32, 5.0)


@contextmanager
def ring(
    between: Callable[[socket.socket, socket.socket], None] | None = None,
) -> Iterator[list[tuple[Inlet, Outlet]]]:
    """Give the ends of three stages; `between` hands on what the first sends the second."""
    pairs = [socket.socketpair() for _ in range(3)]
    threads: list[threading.Thread] = []
    proxies: list[socket.socket] = []
    if between is not None:
        near, far = pairs[0][1], socket.socketpair()
        proxies = [near, far[0]]
        threads = [
            threading.Thread(target=between, args=ends, daemon=True)
            for ends in ((near, far[0]), (far[0], near))
        ]
        pairs[0] = (pairs[0][0], far[1])
    for thread in threads:
        thread.start()
    ends = [
        (Inlet(pairs[stage - 1][1], member(stage), ""), Outlet(pairs[stage][0], member(stage), ""))
        for stage in range(3)
    ]
    try:
        yield ends
    finally:
        for inlet, outlet in ends:
            inlet.close()
            outlet.close()
        for thread in threads:
            thread.join(5)
        for proxy in proxies:
            proxy.close()


def all_measured(ends: list[tuple[Inlet, Outlet]]) -> list[float]:
    """Return what each stage of a ring measures while the others do too."""
    found = [0.0] * len(ends)

    def run(stage: int) -> None:
        inlet, outlet = ends[stage]
        found[stage] = calibrate.measure(inlet, outlet, patience())
        # As in a ring at work: the inlet goes on answering.
        while not all(found):
            inlet.pump()
            time.sleep(0.001)

    threads = [
        threading.Thread(target=run, args=(stage,), daemon=True) for stage in range(len(ends))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def patience(stop: bool = False) -> Patience:
    return Patience(time.monotonic() + 20, lambda: stop)


def slow(source: socket.socket, target: socket.socket) -> None:
    """Hand on 16 KiB each 20 ms at most, which is 6.6 Mbit/s."""
    try:
        while data := source.recv(16 << 10):
            time.sleep(0.02 * len(data) / (16 << 10))
            target.sendall(data)
    except OSError:
        pass


def test_all_stages_measure_at_once() -> None:
    with ring() as ends:
        assert min(all_measured(ends)) > 0
        inlet, outlet = ends[0]
        assert outlet.types.of(1) is Q8  # what nobody measured is slow
        assert not inlet.has_waiting


def test_a_slow_link_is_found_slow() -> None:
    with ring(slow) as ends:
        first, second, third = all_measured(ends)
        assert 0 < first < 10e6 / 8
        assert min(second, third) > first


def test_a_link_without_an_answer_is_slow_and_takes_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibrate, "_AT_MOST_S", 0.2)
    with ring() as ends:
        inlet, outlet = ends[0]
        assert calibrate.measure(inlet, outlet, patience()) == (64 << 10) / 0.2


def test_one_slow_answer_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_ENOUGH_S", 0.1)
    stalled = threading.Event()

    def stall_once(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 20):
                if len(data) > 1000 and not stalled.is_set():
                    stalled.set()
                    time.sleep(0.5)  # 64 KiB in that time are 1 Mbit/s
                target.sendall(data)
        except OSError:
            pass

    with ring(stall_once) as ends:
        assert min(all_measured(ends)) > 2e6 / 8
        assert stalled.is_set()


def test_a_lost_neighbour_ends_it() -> None:
    with ring() as ends:
        ends[1][0].close()
        with pytest.raises(Lost, match="stage 1 was lost"):
            calibrate.measure(*ends[0], patience())


def test_frames_that_come_meanwhile_are_kept_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_AT_MOST_S", 0.2)
    with ring() as ends:
        sender, (inlet, outlet) = ends[0][1], ends[1]
        for position in range(3):
            rows = np.full((1, 64), position, np.float32)
            sender.send((), np.array([[0, position]], np.int32), rows)
        calibrate.measure(inlet, outlet, patience())
        found = []
        while len(found) < 3:
            while (frame := inlet.frame()) is not None:
                found.append(frame.pairs[0, 1])
            if len(found) < 3:
                inlet.pump()
        assert found == [0, 1, 2]


def test_who_has_plenty_is_not_asked_for_more_and_a_burst_is_not_plenty() -> None:
    passed: list[int] = []

    def fast(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                passed.append(len(data))
                target.sendall(data)

    with ring(fast) as ends:
        plenty = ends[0][1].types.plenty
        assert min(all_measured(ends)) >= plenty
    assert 320 << 10 <= sum(passed) < 1 << 20

    left = [128 << 10]

    def shaped(source: socket.socket, target: socket.socket) -> None:
        """Hand on 128 KiB at once, then 16 KiB each 20 ms."""
        with suppress(OSError):
            while data := source.recv(16 << 10):
                left[0] -= len(data)
                if left[0] < 0 and len(data) > 1000:
                    time.sleep(0.02)
                target.sendall(data)

    with ring(shaped) as ends:
        assert all_measured(ends)[0] < plenty
