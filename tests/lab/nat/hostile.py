"""What a hostile member and an outsider send, for `test_hostile.py`.

python hostile.py flood ADDRESS PORT SECONDS     datagrams that look like probes, as fast as it
                                                 goes; prints how many
python hostile.py send FILE SOURCE ADDRESS PORT  the datagrams in FILE (hexadecimal lines), with
                                                 SOURCE as the sender's address
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from pathlib import Path

from agent.paths.messages import PROBE_BYTES
from agent.probing.header import checksum, udp_header
from agent.probing.port import MAGIC

_PORT = 51820
_TTL, _UDP = 64, 17
_IPV4 = struct.Struct("!BBHHHBBH4s4s")

# Read by Python at the start of an agent: all that it signals then is the lie in LIES_ABOUT, host
# by host, from new ports each time, five times a second to each peer, with an attempt on random
# ports each time. It sends no probe, so that no path to it ends what it asks for.
LIES = """
import itertools
import os
import agent.paths.pair as pair
from agent.paths.messages import Candidate, Kind, NatKind
from agent.paths.talk import Talk
from agent.traversal.service import Traversal

true_signal, numbers = pair.Signal, itertools.count()


def lie(**said):
    number, hosts = next(numbers), os.environ["LIES_ABOUT"].split()
    places = [(host, 1024 + (number * 8 + n) % 60_000) for host in hosts for n in range(8)]
    said["candidates"] = tuple(Candidate.of(Kind.OBSERVED, place) for place in places)
    said["nat"], said["birthday"], said["call_me"] = NatKind.HARD, number + 1, True
    return true_signal(**said)


def due(self, now):
    if now < getattr(self, "lied_at", 0.0) + 0.2:
        return False
    self.lied_at = now
    return True


pair.Signal = lie
Traversal._send_probe = lambda self, parts, output: None
Talk.due = due
Talk.wake_at = property(lambda self: getattr(self, "lied_at", 0.0) + 0.2)
"""


def flood(address: str, port: int, seconds: float) -> int:
    """Send noise that begins as a probe does; return how many datagrams."""
    sent, end = 0, time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outlet:
        while time.monotonic() < end:
            for _ in range(50):
                outlet.sendto(MAGIC + os.urandom(PROBE_BYTES - len(MAGIC)), (address, port))
            sent += 50
    return sent


def send(file: Path, source: str, address: str, port: int) -> None:
    """Send datagrams under another's address."""
    one, other = socket.inet_aton(source), socket.inet_aton(address)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as outlet:
        for line in file.read_text().split():
            payload = bytes.fromhex(line)
            header = udp_header(one, other, _PORT, port, payload)
            length = _IPV4.size + len(header) + len(payload)
            head = _IPV4.pack(0x45, 0, length, 0, 0, _TTL, _UDP, 0, one, other)
            head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
            outlet.sendto(head + header + payload, (address, 0))
            time.sleep(0.0005)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "flood":
        print(flood(rest[0], int(rest[1]), float(rest[2])))
    else:
        send(Path(rest[0]), rest[1], rest[2], int(rest[3]))
