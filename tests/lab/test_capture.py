"""What the underlay sees between two stages while a ring answers: WireGuard's datagrams.

Beside them only discovery's and the path engine's own, which are sealed as well (design §5, §7); no
TCP at all, and no byte that is not encrypted.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from agent.demo.mesh import GATEWAY, GATEWAY_PORT, DemoMesh
from agent.engine.frames import MAGIC
from agent.probing.port import MAGIC as PROBE

HERE = Path(__file__).parent
QUESTION = "Spell the word 'harbour'."
WIREGUARD, DISCOVERY = 51820, 4001
# Probes go between WireGuard's ports, and to the port beside it, where a node is told its place.
PATHS = {WIREGUARD, WIREGUARD + 1}
_ETHERNET, _IPV4, _UDP, _TCP = 14, 0x0800, 17, 6


def packets(path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (IP protocol, source port, destination port, payload) of each packet of a pcap file."""
    raw = path.read_bytes()
    at = 24
    while at + 16 <= len(raw):
        size = struct.unpack_from("<I", raw, at + 8)[0]
        frame = raw[at + 16 : at + 16 + size]
        at += 16 + size
        if struct.unpack_from("!H", frame, 12)[0] != _IPV4:
            continue
        header = (frame[_ETHERNET] & 15) * 4
        body = frame[_ETHERNET + header :]
        protocol = frame[_ETHERNET + 9]
        ports = struct.unpack_from("!HH", body) if protocol in (_UDP, _TCP) else (0, 0)
        yield protocol, ports[0], ports[1], body[8:]


def test_between_stages_there_is_wireguard_and_nothing_readable(mesh: DemoMesh) -> None:
    beta, gamma = mesh.machine("beta"), mesh.machine("gamma")
    file = mesh.root / "between.pcap"
    between = ["host", beta.address, "and", "host", gamma.address]
    # Immediate mode: what still lies in the kernel's block when tcpdump ends would be lost.
    command = ["tcpdump", "-i", "eth0", "--immediate-mode", "-U", "-Z", "root", "-w", str(file)]
    capture = subprocess.Popen(
        beta.command([*command, *between]),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert capture.stderr is not None
    capture.stderr.readline()  # "listening on …": from here on it sees everything
    base = f"http://127.0.0.1:{GATEWAY_PORT}"
    ask = [sys.executable, str(HERE / "ask.py"), base, "trio", QUESTION]
    done = mesh.machine(GATEWAY).run(ask, env=mesh.environment(GATEWAY))
    assert done.returncode == 0, done.stderr
    time.sleep(0.3)
    capture.terminate()
    capture.wait(timeout=10)
    capture.stderr.close()
    seen = list(packets(file))
    probes = [packet for packet in seen if packet[0] == _UDP and packet[3].startswith(PROBE)]
    assert all(PATHS & set(packet[1:3]) for packet in probes)
    seen_besides = [packet for packet in seen if packet not in probes]
    wireguard = [p for _, source, target, p in seen_besides if WIREGUARD in (source, target)]
    # A WireGuard message is a type of 1 to 4 and three zero bytes; 4 is data.
    assert all(payload[0] in (1, 2, 3, 4) and payload[1:4] == b"\0\0\0" for payload in wireguard)
    assert sum(payload[0] == 4 for payload in wireguard) >= 10
    others = [packet for packet in seen_besides if WIREGUARD not in packet[1:3]]
    assert {
        (protocol, DISCOVERY in (source, target)) for protocol, source, target, _ in others
    } <= {(_UDP, True)}
    everything = b"".join(payload for *_, payload in seen)
    for secret in (MAGIC, b"harbour", b"HTTP/1", b"/covey/", beta.name.encode()):
        assert secret not in everything
