"""The board that workers share: what was written last and whole is read, whoever died meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import board as module
from gateway.board import MOST_BYTES, Board

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def test_each_has_a_sheet_and_the_last_write_counts() -> None:
    board = Board(3)
    assert board.read(1) == (b"", False)
    for text in (b"one", b"", b"a longer one", b"two"):
        assert board.write(2, text)
        assert board.read(2) == (text, True)
    assert board.write(3, b"three")
    assert [board.read(n)[0] for n in (1, 2, 3)] == [b"", b"two", b"three"]


def test_what_was_written_stays_when_the_worker_is_gone() -> None:
    board = Board(1)
    board.write(1, b"so far")
    board.leave(1)
    assert board.read(1) == (b"so far", False)
    board.write(1, b"again")
    assert board.read(1) == (b"again", True)


FORKED = """
import os
from gateway.board import Board

board = Board(2)
board.write(1, b"parent")
pid = os.fork()
if pid == 0:
    os._exit(not board.write(2, b"child of " + board.read(1)[0]))
assert os.waitpid(pid, 0)[1] == 0
print(*board.read(2))
"""


def test_another_process_reads_it_and_writes_too() -> None:
    done = subprocess.run(  # pytest has threads, and must not fork
        [sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "b'child of parent' True\n"


def test_who_is_killed_half_way_leaves_what_was_there_before() -> None:
    board = Board(1)
    for text in (b"first", b"second", b"third"):
        board.write(1, text)
        for which in (0, 1):  # the half that the next write goes to
            begin = board._begin(1, which)
            if board._half(1, which)[1] != text:
                board._memory[begin + 20 : begin + 30] = b"half a wri"
        assert board.read(1) == (text, True)


def test_what_is_too_long_leaves_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(2)
    whole = os.urandom(1024) * (MOST_BYTES // 1024)
    assert board.write(1, whole) and board.write(1, whole[:-1]) and board.write(2, b"next to it")
    assert board.read(1)[0] == whole[:-1] and board.read(2)[0] == b"next to it"
    monkeypatch.setattr(module, "MOST_BYTES", 4)
    assert not board.write(2, b"12345")
