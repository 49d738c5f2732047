"""One TCP stream over the overlay, of which no byte may be lost, and how long it stands still.

    python nat_stream.py receive ADDRESS PORT LAST   prints READY, then "FROM TO" of each pause
    python nat_stream.py send ADDRESS PORT           until its standard input ends

The bytes are the same each time (SHAKE-128 of the chunk's number). The sender ends with its count
and digest, the receiver with its own; the file LAST says when something arrived last. `Stream` runs
both on two machines and reads their words. All count CLOCK_MONOTONIC, one for all namespaces.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from agent.demo.netlab import Machine

CHUNK_BYTES, CHUNK_EVERY_S = 1024, 1 / 64
# Shorter ones are what a busy machine does by itself.
PAUSE_S = 0.1
FLOWS_S = 0.3
# TCP repeats after 0.2, 0.4, 0.8 … s: whatever stands still so long is dead.
_DEAD_S = 90.0


def chunk(number: int) -> bytes:
    """Return what the chunk of this number holds."""
    return hashlib.shake_128(number.to_bytes(8, "big")).digest(CHUNK_BYTES)


def expected(count: int) -> str:
    """Return the digest of the first `count` bytes, a whole number of chunks."""
    digest = hashlib.sha256()
    for number in range(count // CHUNK_BYTES):
        digest.update(chunk(number))
    return digest.hexdigest()


def send(address: str, port: int) -> None:
    """Write chunks at their pace until the standard input ends; a late one is made up for."""
    digest, number, due = hashlib.sha256(), 0, time.monotonic()
    with socket.create_connection((address, port), timeout=_DEAD_S) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            data = chunk(number)
            stream.sendall(data)
            digest.update(data)
            number += 1
            due = max(due + CHUNK_EVERY_S, time.monotonic() - 1)
        stream.shutdown(socket.SHUT_WR)
        print(number * CHUNK_BYTES, digest.hexdigest(), stream.recv(200).decode(), flush=True)


def receive(address: str, port: int, last_file: str) -> None:
    """Take one stream, and tell each pause in it."""
    digest, count = hashlib.sha256(), 0
    told = os.open(last_file, os.O_RDWR | os.O_CREAT, 0o600)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as listening:
        print("READY", flush=True)
        listening.settimeout(_DEAD_S)
        stream, _ = listening.accept()
    with stream:
        stream.settimeout(_DEAD_S)
        last = time.monotonic()
        while data := stream.recv(65536):
            now = time.monotonic()
            if now - last >= PAUSE_S:
                print(f"{last:.3f} {now:.3f}", flush=True)
            last = now
            os.pwrite(told, f"{now:020.6f}".encode(), 0)
            digest.update(data)
            count += len(data)
        stream.sendall(f"{count} {digest.hexdigest()}".encode())


class Stream:
    """A stream between two machines, from now until `end`."""

    def __init__(
        self, folder: Path, sender: Machine, receiver: Machine, address: str, port: int
    ) -> None:
        """`address`: the receiver's, on the overlay."""
        self._words, self._last = folder / f"stream-{port}.words", folder / f"stream-{port}.last"
        program = _program("receive", address, port, self._last)
        with self._words.open("wb") as words:
            self._receiver = receiver.spawn(program, output=words)
        self._wait("READY")
        self._sender = subprocess.Popen(
            sender.command(_program("send", address, port)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def gap(self, since: float, for_s: float, limit_s: float) -> float:
        """Watch for `for_s` after a change at `since`, then until it flows, `limit_s` at most.

        Return the longest pause that ended in that time; `limit_s` if nothing flows at the end.
        """
        deadline = since + for_s
        while (now := time.monotonic()) < deadline or now - self.last() > FLOWS_S:
            if now > since + max(for_s, limit_s):
                return limit_s
            time.sleep(0.05)
        return max((end - begin for begin, end in self.pauses() if end > since), default=0.0)

    def last(self) -> float:
        """Return when something arrived last."""
        text = self._last.read_text() if self._last.exists() else ""
        return float(text) if text else float("-inf")

    def pauses(self) -> list[tuple[float, float]]:
        """Return from when to when nothing arrived, of each pause that is over."""
        lines = self._words.read_text().splitlines()[1:]
        return [(float(a), float(b)) for a, _, b in (line.partition(" ") for line in lines)]

    def end(self) -> tuple[int, str, int, str]:
        """End it; return the bytes and the digest that left, then those that arrived."""
        said, _ = self._sender.communicate(timeout=_DEAD_S)
        self._receiver.wait(_DEAD_S)
        words = said.split()
        if len(words) != 4:
            raise AssertionError(f"the stream broke: {said.strip()} {self._words.read_text()}")
        return int(words[0]), words[1], int(words[2]), words[3]

    def _wait(self, word: str, limit_s: float = 20.0) -> None:
        deadline = time.monotonic() + limit_s
        while word not in self._words.read_text():
            if time.monotonic() > deadline or self._receiver.poll() is not None:
                raise AssertionError(f"the receiver did not start: {self._words.read_text()}")
            time.sleep(0.05)


def _program(*words: object) -> list[str]:
    return [sys.executable, __file__, *map(str, words)]


def main(words: Sequence[str]) -> None:
    """Run one end."""
    if words[0] == "send":
        send(words[1], int(words[2]))
    else:
        receive(words[1], int(words[2]), words[3])


if __name__ == "__main__":
    main(sys.argv[1:])
