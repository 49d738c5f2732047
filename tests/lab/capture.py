"""What goes over a link: captured by tcpdump, read from its file."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

TCP, UDP = 6, 17
_FILE_HEADER, _RECORD_HEADER = 24, 16
_ETHERNET, _IPV4, _UDP_HEADER = 14, 0x0800, 8


@dataclass(frozen=True)
class Packet:
    """An IPv4 packet; the ports are 0 but of TCP and UDP, the payload is what those carry."""

    at: float
    """Unix seconds."""
    protocol: int
    source: str
    target: str
    source_port: int
    target_port: int
    payload: bytes


@contextmanager
def capturing(
    command: Callable[[list[str]], Sequence[str]], file: Path, *what: str, link: str = "eth0"
) -> Iterator[None]:
    """Write to `file` what passes the filter `what` meanwhile; `command` puts tcpdump in its place.

    Immediate mode: what still lies in the kernel's block when tcpdump ends would be lost.
    """
    arguments = ["tcpdump", "-i", link, "--immediate-mode", "-U", "-Z", "root", "-w", str(file)]
    capture = subprocess.Popen(
        command([*arguments, *what]),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert capture.stderr is not None
    first = capture.stderr.readline()
    assert b"listening on" in first, first + capture.stderr.read()
    try:
        yield
        time.sleep(0.3)
    finally:
        capture.terminate()
        capture.wait(timeout=10)
        capture.stderr.close()


def packets(file: Path) -> Iterator[Packet]:
    """Yield the IPv4 packets of a pcap file, as the machine wrote it."""
    raw, start = file.read_bytes(), _FILE_HEADER
    while start + _RECORD_HEADER <= len(raw):
        seconds, micros, size = struct.unpack_from("=III", raw, start)
        frame = raw[start + _RECORD_HEADER : start + _RECORD_HEADER + size]
        start += _RECORD_HEADER + size
        if struct.unpack_from("!H", frame, _ETHERNET - 2)[0] != _IPV4:
            continue
        # Ethernet fills small frames up, so the packet's own length counts.
        packet = frame[_ETHERNET : _ETHERNET + struct.unpack_from("!H", frame, _ETHERNET + 2)[0]]
        protocol, body = packet[9], packet[(packet[0] & 15) * 4 :]
        ports, header = (0, 0), 0
        if protocol in (TCP, UDP):
            ports = struct.unpack_from("!HH", body)
            header = _UDP_HEADER if protocol == UDP else (body[12] >> 4) * 4
        source, target = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        yield Packet(
            seconds + micros / 1e6, protocol, str(source), str(target), *ports, body[header:]
        )
