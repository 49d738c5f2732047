"""Sends UDP as fast as it may be wanted: `relay_flood.py '{"to": ADDRESS, "seconds": 5}'`."""

from __future__ import annotations

import json
import socket
import sys
import time

# 40 Mbit/s: far more than the limits that it is to meet, and little to this machine.
BYTES_PER_S = 5_000_000
SIZE = 1000


def main(to: str, seconds: float) -> None:
    began, sent = time.monotonic(), 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        print(json.dumps({"event": "flooding"}), flush=True)
        while (passed := time.monotonic() - began) < seconds:
            while sent < passed * BYTES_PER_S:
                try:
                    made.sendto(bytes(SIZE), (to, 5202))
                except ConnectionRefusedError:  # nobody listens there, nor needs to
                    continue
                sent += SIZE
            time.sleep(0.005)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
