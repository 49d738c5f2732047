"""Many datagrams with one system call: recvmmsg and sendmmsg of the C library. A shell.

Python's own socket calls cost a relay two calls and some objects for each datagram. Here datagrams
stay in one buffer, and what is done for each of them is done by strides over it: `receive` from one
connected socket, look at lengths and first words, `send` to another connected socket. One thread
uses a batch. Used by `userspace.py`.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import sys
from typing import Literal

# As many as a burst of a WireGuard peer has on a fast link.
SIZE = 64
# Longer ones do not come over the Internet; those that fill a slot may be cut, and are dropped.
SLOT_BYTES = 2048


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Header(ctypes.Structure):
    """struct msghdr; musl writes two ints where glibc has a size_t, which is the same to us."""

    _fields_ = [
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p), ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]  # fmt: skip


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = [("header", _Header), ("length", ctypes.c_uint32)]


# The calls never block, so they need not let go of the interpreter.
_libc = ctypes.PyDLL(None, use_errno=True)
_WORD_BYTES = ctypes.sizeof(ctypes.c_size_t)
_WORD: Literal["Q", "I"] = "Q" if _WORD_BYTES == 8 else "I"
_MESSAGE_WORDS = ctypes.sizeof(_Message) // _WORD_BYTES
_LENGTH_WORD = _Message.length.offset // _WORD_BYTES
# The kernel writes four bytes of a word that we keep at zero: its value where they come first.
_LENGTHS_ARE_WORDS = sys.byteorder == "little"


class Batch:
    """Room for SIZE datagrams."""

    def __init__(self, *, strides: bool = _LENGTHS_ARE_WORDS) -> None:
        """`strides`: copy the lengths all at once; wrong on big-endian machines."""
        self._strides = strides
        self._buffer = ctypes.create_string_buffer(SIZE * SLOT_BYTES)
        self._vectors = (_Vector * SIZE)()
        self._messages = (_Message * SIZE)()
        start = ctypes.addressof(self._buffer)
        for index in range(SIZE):
            self._vectors[index] = _Vector(start + index * SLOT_BYTES, SLOT_BYTES)
            header = self._messages[index].header
            header.vectors = ctypes.addressof(self._vectors) + index * ctypes.sizeof(_Vector)
            header.vector_count = 1
        self._bytes = memoryview(self._buffer).cast("B")
        self._firsts: memoryview[int] = self._bytes.cast("I")[:: SLOT_BYTES // 4]
        self._sizes: memoryview[int] = memoryview(self._vectors).cast("B").cast(_WORD)[1::2]
        self._whole: memoryview[int] = memoryview(bytearray(self._sizes.tobytes())).cast(_WORD)
        self._lengths: memoryview[int] = (
            memoryview(self._messages).cast("B").cast(_WORD)[_LENGTH_WORD::_MESSAGE_WORDS]
        )

    def receive(self, fd: int) -> int:
        """Fill the batch from a socket; return how many datagrams came, 0 for none."""
        self._sizes[:] = self._whole
        got = _libc.recvmmsg(fd, self._messages, SIZE, socket.MSG_DONTWAIT, None)
        if got <= 0:
            return 0
        if self._strides:
            self._sizes[:got] = self._lengths[:got]
        else:
            for index in range(got):
                self._sizes[index] = self._messages[index].length
        return int(got)

    def lengths(self, got: int) -> list[int]:
        """Return the datagrams' lengths; SLOT_BYTES is one that may be cut."""
        return self._sizes[:got].tolist()

    def has_word(self, word: int, got: int) -> bool:
        """Say whether a datagram begins with these four bytes, read in this machine's order."""
        return word in self._firsts[:got].tolist()

    def datagram(self, index: int) -> bytes:
        """Return one datagram."""
        start = index * SLOT_BYTES
        return bytes(self._bytes[start : start + self._sizes[index]])

    def send(self, fd: int, first: int, last: int) -> int:
        """Send datagrams first … last - 1 to a connected socket; return how many went.

        Those that find no room are dropped, as a network does.
        """
        at = first
        patience = 2  # an ICMP error of an earlier datagram is told instead of sending one
        while at < last and patience:
            sent = _libc.sendmmsg(
                fd,
                ctypes.byref(self._messages, at * ctypes.sizeof(_Message)),
                last - at,
                socket.MSG_DONTWAIT,
            )
            if sent > 0:
                at += sent
            else:
                patience -= 1
                if ctypes.get_errno() in (errno.EAGAIN, errno.ENOBUFS, errno.EBADF):
                    break
        return at - first
