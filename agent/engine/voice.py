"""Small messages on a ring's connection: whole, and never within a frame.

For `link.py`: pings, echoes and faults are said by two threads, while one of them may be sending a
frame. Nothing here waits.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

# What a neighbour that reads nothing is owed at the most.
_KEPT_BYTES = 4_096
# Linux's `struct tcp_info`: the least RTT of the last minutes, in µs.
_MIN_RTT = struct.Struct("<I")
_MIN_RTT_AT = 148


class Voice:
    """One direction of a connection, shared by two threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._owed = b""
        self._torn = False

    def say(self, message: bytes) -> bool:
        """Send a message, or keep its rest for later; False, and nothing, while a frame is sent.

        Raises OSError when the connection has ended.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._torn or len(self._owed) > _KEPT_BYTES:
                return False
            data = self._owed + message
            try:
                self._owed = data[self._socket.send(data) :]
            except (BlockingIOError, InterruptedError):
                self._owed = data
            return True
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def alone(self) -> Iterator[bytes]:
        """Keep others silent for a frame, which begins with the bytes that this gives.

        If it ends with an error, nothing may follow what was sent of it.
        """
        with self._lock:
            owed, self._owed, self._torn = self._owed, b"", True
            yield owed
            self._torn = False


def rtt_s(connection: socket.socket) -> float:
    """Return a TCP connection's least RTT of late in seconds, 0 where it is not known."""
    try:
        found = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        (rtt_us,) = _MIN_RTT.unpack_from(found, _MIN_RTT_AT)
    except (OSError, struct.error):
        return 0.0
    # All ones where it was never measured.
    return 0.0 if rtt_us == 0xFFFFFFFF else 1e-6 * float(rtt_us)
