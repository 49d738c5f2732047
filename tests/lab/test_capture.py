"""What the underlay sees between two stages while a ring answers: WireGuard's datagrams.

Beside them only discovery's and the path engine's own, which are sealed as well (design §5, §7); no
TCP at all, and no byte that is not encrypted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from capture import UDP, Packet, capturing, packets

from agent.demo.mesh import GATEWAY, GATEWAY_PORT, DemoMesh
from agent.engine.frames import MAGIC
from agent.probing.port import MAGIC as PROBE

HERE = Path(__file__).parent
QUESTION = "Spell the word 'harbour'."
WIREGUARD, DISCOVERY = 51820, 4001
# Probes go between WireGuard's ports, and to the port beside it, where a node is told its place.
PATHS = {WIREGUARD, WIREGUARD + 1}


def test_between_stages_there_is_wireguard_and_nothing_readable(mesh: DemoMesh) -> None:
    beta, gamma = mesh.machine("beta"), mesh.machine("gamma")
    file = mesh.root / "between.pcap"
    between = ["host", beta.address, "and", "host", gamma.address]
    base = f"http://127.0.0.1:{GATEWAY_PORT}"
    ask = [sys.executable, str(HERE / "ask.py"), base, "trio", QUESTION]
    with capturing(beta.command, file, *between):
        done = mesh.machine(GATEWAY).run(ask, env=mesh.environment(GATEWAY))
    assert done.returncode == 0, done.stderr
    seen = list(packets(file))
    assert {packet.protocol for packet in seen} == {UDP}
    probes = [packet for packet in seen if packet.payload.startswith(PROBE)]
    assert all(PATHS & ports(packet) for packet in probes)
    others = [packet for packet in seen if packet not in probes]
    wireguard = [packet.payload for packet in others if WIREGUARD in ports(packet)]
    # A WireGuard message is a type of 1 to 4 and three zero bytes; 4 is data.
    assert all(payload[0] in (1, 2, 3, 4) and payload[1:4] == b"\0\0\0" for payload in wireguard)
    assert sum(payload[0] == 4 for payload in wireguard) >= 10
    assert all(DISCOVERY in ports(packet) for packet in others if WIREGUARD not in ports(packet))
    everything = b"".join(packet.payload for packet in seen)
    for secret in (MAGIC, b"harbour", b"HTTP/1", b"/covey/", beta.name.encode()):
        assert secret not in everything


def ports(packet: Packet) -> set[int]:
    return {packet.source_port, packet.target_port}
