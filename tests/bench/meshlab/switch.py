"""A switch that hands on each frame a fixed time later, by the pair of ports.

    python switch.py DELAYS      in the namespace of a LAN's switch, whose bridge has no ports now

DELAYS is JSON: {"link": {"other link": one way in s}}. Prints "ready" once it listens. Delaying
packets in the kernel needs netem, which not every kernel has. Frames that the kernel has not cut
yet (GSO) stay whole: their virtio header goes with them.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import deque

_ALL_PROTOCOLS = 3
_SOL_PACKET, _IGNORE_OUTGOING, _VNET_HEADER = 263, 23, 15
_HEADER_BYTES = 10  # of virtio, before the frame
_MOST_BYTES = 1 << 17
_BUFFER_BYTES = 16 << 20
# Frames of one port in a row, so that the others get their turn.
_AT_ONCE = 64


def _port(link: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    made.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
    made.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        made.setsockopt(socket.SOL_SOCKET, name, _BUFFER_BYTES)
    made.bind((link, 0))
    made.setblocking(False)
    return made


def main() -> None:
    """Switch until killed."""
    delays: dict[str, dict[str, float]] = json.loads(sys.argv[1])
    ports = {link: _port(link) for link in delays}
    links = {port: link for link, port in ports.items()}
    where: dict[bytes, str] = {}  # by MAC address
    waiting: dict[tuple[str, str], deque[tuple[float, bytes]]] = {
        (one, other): deque() for one in delays for other in delays[one]
    }
    print("ready", flush=True)
    while True:
        dues = [frames[0][0] for frames in waiting.values() if frames]
        left = max(0.0, min(dues) - time.perf_counter()) if dues else None
        # select() counts in microseconds, poll() in milliseconds.
        ready, _, _ = select.select(list(links), [], [], left)
        for port in ready:
            one = links[port]
            for _ in range(_AT_ONCE):
                try:
                    frame = port.recv(_MOST_BYTES)
                except BlockingIOError:
                    break
                now = time.perf_counter()
                where[frame[_HEADER_BYTES + 6 : _HEADER_BYTES + 12]] = one
                known = where.get(frame[_HEADER_BYTES : _HEADER_BYTES + 6])
                for other in (known,) if known is not None else tuple(delays[one]):
                    if other != one:
                        waiting[one, other].append((now + delays[one][other], frame))
        now = time.perf_counter()
        for (_, other), frames in waiting.items():
            while frames and frames[0][0] <= now:
                try:
                    ports[other].send(frames.popleft()[1])
                except OSError:
                    continue  # a full queue drops it, as a switch does


if __name__ == "__main__":
    main()
