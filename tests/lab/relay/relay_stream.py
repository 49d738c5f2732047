"""TCP from one machine to another: `receive ADDRESS` prints Mbit/s of what `send` sends."""

from __future__ import annotations

import socket
import sys
import threading
import time

PORT = 5201
CHUNK = 1024 * 1024


def receive(address: str) -> None:
    with socket.create_server((address, PORT)) as server:
        print("listening", flush=True)
        first, _ = server.accept()
        streams = [first]
        count = int.from_bytes(first.recv(1), "big")
        streams += [server.accept()[0] for _ in range(count - 1)]
        for stream in streams[1:]:
            stream.recv(1)
        total = [0] * count
        began = time.monotonic()

        def drain(number: int) -> None:
            buffer = bytearray(CHUNK)
            while size := streams[number].recv_into(buffer):
                total[number] += size

        threads = [threading.Thread(target=drain, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(sum(total) * 8 / 1e6 / (time.monotonic() - began), flush=True)


def send(address: str, seconds: float, count: int) -> None:
    streams = [socket.create_connection((address, PORT), timeout=10) for _ in range(count)]
    for stream in streams:
        stream.sendall(bytes([count]))
    end = time.monotonic() + seconds

    def fill(stream: socket.socket) -> None:
        data = bytes(CHUNK)
        with stream:
            while time.monotonic() < end:
                stream.send(data)

    threads = [threading.Thread(target=fill, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2])
    else:
        send(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
