"""A member that names third parties, one that lies about where it is, and a flood from outside.

Whom a member names gets little; who is named as a sender gets no more than was sent; who is no
member gets no answer at all. Meanwhile the others work.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from capture import capturing, packets
from hostile import LIES
from nat_agents import NatMesh

from agent.demo.natlab import NatLab, NatMachine
from agent.membership.store import StateDir
from agent.paths import credit
from agent.paths.birthday import PROBES_PER_S, SALVO_S
from agent.paths.engine import PROBES_BURST as ANSWERS_BURST
from agent.paths.engine import PROBES_PER_S as ANSWERS_PER_S
from agent.paths.messages import PROBE_BYTES, Ping
from agent.paths.wire import NONCE_BYTES, PathSeal

pytestmark = pytest.mark.timeout(400)

SCRIPT = Path(__file__).parent / "hostile.py"
PORT = 51820
# Longer than one attempt on random ports; the next is 45 s later.
LIE_S = 30.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatMesh]:
    with NatLab() as nat:
        founder = nat.add("r1", "public")
        nat.add("victim", "easy")
        nat.add("mallory", "hard")
        with NatMesh(tmp_path_factory.mktemp("hostile"), nat, [founder]) as made:
            made.join(["victim"], stay=True)
            made.join(["mallory"])
            yield made


@pytest.fixture(scope="module")
def third(mesh: NatMesh) -> NatMachine:
    """A machine on the internet that has nothing to do with the mesh."""
    return mesh.nat.add("third", "public").machines[0]


def test_whom_a_member_names_gets_little(mesh: NatMesh, third: NatMachine, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LIES)
    environment = mesh.environment("mallory") | {"LIES_ABOUT": f"{third.address} 10.1.2.3"}
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    victim = mesh.machine("victim")
    to_third, to_private = tmp_path / "third.pcap", tmp_path / "private.pcap"
    with (
        capturing(third.command, to_third, "udp", "and", "dst", third.address),
        capturing(victim.command, to_private, "dst", "net", "10.0.0.0/8"),
    ):
        began = time.time()
        done = mesh.machine("mallory").run(
            [sys.executable, "-m", "agent", "up"], env=environment, timeout_s=120
        )
        assert done.returncode == 0, done.stderr
        time.sleep(LIE_S)
        assert mesh.ping("victim", "r1")["rtt_ms"] is not None
        mesh.agent("mallory", "down")
        ended = time.time()
    salvo = SALVO_S * PROBES_PER_S + 2
    sent: dict[str, list[float]] = {}
    for packet in packets(to_third):
        sent.setdefault(packet.source, []).append(packet.at - began)
    assert mesh.nat.sites["victim"].address in sent, "it does not believe mallory at all"
    for times in sent.values():
        assert len(times) <= credit.PROBES_BURST + credit.PROBES_PER_S * (ended - began) + salvo
        busiest = max(Counter(int(at) for at in times).values())
        assert busiest <= PROBES_PER_S + credit.PROBES_BURST
    assert not list(packets(to_private)), "a private network that is not its own was scanned"
    print({source: len(times) for source, times in sent.items()}, f"in {ended - began:.0f} s")


def test_who_is_named_as_the_sender_gets_no_more_than_was_sent(
    mesh: NatMesh, third: NatMachine, tmp_path: Path
) -> None:
    state = StateDir(mesh.root / "mallory")
    with state.lock():
        membership = state.membership()
    assert membership is not None
    founder = mesh.machine("r1")
    seal = PathSeal(membership.key, membership.mesh.id, membership.network_keys(time.time()), 7)
    nodes = [member.node_id for member in membership.live_members(time.time())]
    seal.set_members(nodes)
    (peer,) = [m.node_id for m in membership.live_members(time.time())
               if m.certificate.name == "r1"]  # fmt: skip
    count = 2000
    datagrams = [
        seal.seal_probe(peer, Ping(n + 1, wants=True), secrets.token_bytes(NONCE_BYTES)).hex()
        for n in range(count)
    ]
    file = tmp_path / "spoofed"
    file.write_text("\n".join(datagrams))
    outside = mesh.nat.add("liar", "public").machines[0]
    answers = tmp_path / "answers.pcap"
    with capturing(third.command, answers, "udp", "and", "src", founder.address):
        began = time.monotonic()
        done = outside.run(
            [sys.executable, str(SCRIPT), "send", str(file), third.address, founder.address,
             str(PORT)], timeout_s=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        time.sleep(2.0)
        took = time.monotonic() - began
    got = list(packets(answers))
    assert 0 < len(got) <= min(count, ANSWERS_BURST + ANSWERS_PER_S * took + 16)
    sizes = {len(packet.payload) for packet in got}
    assert sizes == {PROBE_BYTES}, "an answer is no larger than a question"


def test_a_flood_from_outside_gets_no_answer_and_stops_nothing(
    mesh: NatMesh, tmp_path: Path
) -> None:
    founder, flooder = mesh.machine("r1"), mesh.nat.add("flooder", "public").machines[0]
    pid = int(mesh.get("r1", "/v1/status")["pid"])
    answers = tmp_path / "answers.pcap"
    with capturing(flooder.command, answers, "udp", "and", "src", founder.address):
        command = [sys.executable, str(SCRIPT), "flood", founder.address, str(PORT), "10"]
        flood = subprocess.Popen(
            flooder.command(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        time.sleep(2.0)
        before, began = cpu_s(pid), time.monotonic()
        rtts = [mesh.ping("victim", "r1")["rtt_ms"] for _ in range(5)]
        share = (cpu_s(pid) - before) / (time.monotonic() - began)
        sent = int(flood.communicate(timeout=30)[0])
    assert not list(packets(answers))
    assert all(rtt is not None for rtt in rtts)
    print(f"{sent / 10:.0f} datagrams/s, {share:.0%} of a core, RTTs {rtts}")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
