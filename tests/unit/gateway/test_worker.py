"""A worker's part of the board, and what its supervisor orders."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gateway import board as board_module
from gateway.board import Board
from gateway.config import Config
from gateway.metrics import Metrics
from gateway.together import Sheet
from gateway.worker import Reload, Stop, Worker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def workers(pair: tuple[socket.socket, socket.socket]) -> Iterator[tuple[Board, list[Worker]]]:
    """Two workers, who share a board; both have the same channel."""
    board, lock = Board(2), os.memfd_create("lock")
    yield board, [Worker(number, pair[1], board, lock) for number in (1, 2)]
    os.close(lock)


def sheet(pid: int, in_flight: int = 0) -> Sheet:
    return Sheet(pid, Metrics().counted(), {}, in_flight, {}, [])


Workers = tuple[Board, list[Worker]]


def test_they_know_of_each_other_and_of_those_that_were_there_before(workers: Workers) -> None:
    board, (one, two) = workers
    assert one.before() is None
    assert one.told(sheet(10)) == [sheet(10)]  # the other has said nothing yet
    assert two.told(sheet(20)) == [sheet(20), sheet(10)]
    two.tell(sheet(20, in_flight=3))
    assert one.told(sheet(10, in_flight=1)) == [sheet(10, 1), sheet(20, 3)]
    board.leave(2)
    assert one.told(sheet(10)) == [sheet(10), sheet(0)]
    assert two.before() == sheet(0)


def test_what_does_not_fit_is_said_once(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, (one, two) = workers
    one.tell(sheet(10))
    monkeypatch.setattr(board_module, "MOST_BYTES", 8)
    one.tell(sheet(11))
    one.tell(sheet(12))
    assert caplog.text.count("too many to be told") == 1
    monkeypatch.undo()
    assert two.told(sheet(20)) == [sheet(20), sheet(10)]


async def test_orders_come_whole_and_the_end_of_their_source_is_one(
    workers: Workers, pair: tuple[socket.socket, socket.socket]
) -> None:
    one = workers[1][0]
    assert list(one.orders()) == []
    reload = Reload(Config(replicas={f"r{n}": f"http://h{n}" for n in range(2000)}))
    for order in (reload, Stop(at_once=True)):
        pair[0].send(msgspec.msgpack.encode(order))
    asyncio.get_running_loop().add_reader(one.channel, lambda: None)
    assert list(one.orders()) == [reload, Stop(at_once=True)]
    one.ready()
    assert pair[0].recv(16) == b"ready"
    pair[0].close()
    assert list(one.orders()) == [Stop(at_once=False)]
    one.ready()  # to nobody
    assert not asyncio.get_running_loop().remove_reader(one.channel)  # it would be heard for ever


FORKED = """
import os, socket
from gateway.board import Board
from gateway.worker import Worker

channel, board, lock = socket.socket(), Board(2), os.memfd_create("lock")
one, two = (Worker(number, channel, board, lock) for number in (1, 2))
with one.alone():
    pid = os.fork()
    if pid == 0:
        with two.alone():
            os.write(1, b"child")
            os._exit(0)  # and has it still
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.write(1, b"first ")
assert os.waitpid(pid, 0)[1] == 0
with one.alone():
    os.write(1, b" again")
"""


def test_one_at_a_time_holds_what_is_there_once() -> None:
    done = subprocess.run(  # pytest has threads, and must not fork
        [sys.executable, "-c", FORKED],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "first child again"
