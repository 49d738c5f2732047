"""An outsider: sends much that is nonsense to a node's ports, and counts what comes back.

python stranger.py ADDRESS
"""

import os
import random
import socket
import sys

TCP_PORT, UDP_PORTS = 4001, (4001, 51820)
MULTISTREAM = b"\x13/multistream/1.0.0\n"


def main() -> int:
    address, rng = sys.argv[1], random.Random(7)
    received = 0
    for payload in (
        b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", MULTISTREAM, MULTISTREAM + b"\x07/noise\n",
        os.urandom(8) + os.urandom(20), os.urandom(4096), bytes(64), b"\x16\x03\x01" + bytes(200),
    ):  # fmt: skip
        with socket.create_connection((address, TCP_PORT), timeout=5) as stream:
            stream.settimeout(1.5)
            try:
                stream.sendall(payload)
                received += len(stream.recv(4096))
            except OSError:
                continue  # silence, or a connection that was closed
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(0.5)
        for _ in range(2000):
            size = rng.choice([0, 1, 24, 40, 100, 148, 500, 1200])
            first = rng.choice([b"", b"\x01\x00\x00\x00", b"d1:ad2:id20:"])
            for port in UDP_PORTS:
                datagrams.sendto(first + rng.randbytes(size), (address, port))
        try:
            while True:
                received += len(datagrams.recv(4096))
        except TimeoutError:
            pass
    print(f"{received} bytes came back")
    return 0


if __name__ == "__main__":
    sys.exit(main())
