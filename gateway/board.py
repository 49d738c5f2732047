"""A board in memory that a gateway's workers share: each writes its own sheet, all read all.

A shell, made by `workers.py` before it forks, so that nobody else can reach it and nothing is left
of it. What a worker wrote stays when it is gone, however it went: a sheet has two halves that are
written in turn, and who is killed half-way through one leaves the other whole.
"""

from __future__ import annotations

import mmap
import struct
from zlib import crc32

# Of each half: the number of the write, the bytes that follow, and their CRC-32.
_HEADER = struct.Struct("<QII")
_BEATS = struct.Struct("<Q")
# Memory is taken only where it was written to. Some ten thousand series of metrics fit.
_HALF_BYTES = 2**21
MOST_BYTES = _HALF_BYTES - _HEADER.size
_TRIES = 3


class Board:
    """The sheets of workers 1 to `workers`; each is written by one process at a time."""

    def __init__(self, workers: int) -> None:
        self._flags = mmap.mmap(-1, workers + 1)
        self._beats = mmap.mmap(-1, workers * _BEATS.size)
        self._memory = mmap.mmap(-1, workers * 2 * _HALF_BYTES)
        self.workers = workers

    def write(self, number: int, data: bytes) -> bool:
        """Put `data` on a worker's sheet, which is there from now on; False if it is too long."""
        if len(data) > MOST_BYTES:
            return False
        writes = [self._half(number, which)[0] for which in (0, 1)]
        which = writes.index(min(writes))
        begin = self._begin(number, which)
        end = begin + _HEADER.size + len(data)
        self._memory[begin + _HEADER.size : end] = data
        header = _HEADER.pack(max(writes) + 1, len(data), crc32(data))
        self._memory[begin : begin + _HEADER.size] = header
        self._flags[number] = 1
        return True

    def beat(self, number: int) -> None:
        """Note that a worker lives."""
        _BEATS.pack_into(self._beats, (number - 1) * _BEATS.size, self.beats()[number] + 1)

    def beats(self) -> dict[int, int]:
        """Return how often each was noted to live, over all processes that were it."""
        counts = _BEATS.iter_unpack(self._beats[:])
        return {number: count for number, (count,) in enumerate(counts, 1)}

    def leave(self, number: int) -> None:
        """Note that the worker is gone; what it wrote stays."""
        self._flags[number] = 0

    def read(self, number: int) -> tuple[bytes, bool]:
        """Return what a worker wrote last, empty: nothing yet, and whether it is there."""
        there = bool(self._flags[number])
        for _ in range(_TRIES):  # a half may be written to while it is read
            write, data = max(self._half(number, which) for which in (0, 1))
            if write:
                return data, there
        return b"", there

    def _begin(self, number: int, which: int) -> int:
        return ((number - 1) * 2 + which) * _HALF_BYTES

    def _half(self, number: int, which: int) -> tuple[int, bytes]:
        """Return the number of the write and what was written; 0 where that is not whole."""
        begin = self._begin(number, which)
        write, length, checksum = _HEADER.unpack_from(self._memory, begin)
        if not write or length > MOST_BYTES:
            return 0, b""
        begin += _HEADER.size
        data = self._memory[begin : begin + length]
        return (write, data) if crc32(data) == checksum else (0, b"")
