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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
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
# Longer than what a peer has at once lasts: four attempts on random ports.
LIE_S, AFTER_S = 55.0, 10.0


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


@contextmanager
def captured(machine: NatMachine, *what: str) -> Iterator[list[tuple[float, str, int]]]:
    """Yield what goes over a machine's link, complete at the end: (unix s, source, UDP bytes)."""
    command = ["tcpdump", "-i", "eth0", "--immediate-mode", "-U", "-n", "-q", "-tt", *what]
    capture = subprocess.Popen(
        machine.command(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert capture.stderr is not None
    while "listening on" not in capture.stderr.readline():
        pass
    seen: list[tuple[float, str, int]] = []
    try:
        yield seen
    finally:
        time.sleep(0.3)
        capture.terminate()
        for line in capture.communicate(timeout=30)[0].splitlines():
            # 1700000000.1 IP 192.88.99.10.51820 > 192.88.99.13.1024: UDP, length 128
            words = line.split()
            seen.append((float(words[0]), words[2].rpartition(".")[0], int(words[-1])))


def test_whom_a_member_names_gets_little(mesh: NatMesh, third: NatMachine, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LIES)
    environment = mesh.environment("mallory") | {"COVEY_LIES": f"{third.address} 10.1.2.3"}
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    victim = mesh.machine("victim")
    with (
        captured(third, "udp", "and", "dst", third.address) as named,
        captured(victim, "dst", "net", "10.0.0.0/8") as private,
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
    salvo = credit.SALVOS_BURST * (SALVO_S * PROBES_PER_S + 2)
    sources = {source for _, source, _ in named}
    assert mesh.nat.sites["victim"].address in sources, "it does not believe mallory at all"
    for source in sources:
        at = [when for when, one, _ in named if one == source]
        assert len(at) <= credit.PROBES_BURST + credit.PROBES_PER_S * (ended - began) + salvo
        last = [when for when in at if when > began + LIE_S - AFTER_S]
        assert len(last) <= 1.5 * credit.PROBES_PER_S * (ended - began - LIE_S + AFTER_S) + 8
    assert private == [], "a private network that is not its own was scanned"
    print({s: sum(1 for _, one, _ in named if one == s) for s in sources}, ended - began)


def test_who_is_named_as_the_sender_gets_no_more_than_was_sent(
    mesh: NatMesh, third: NatMachine, tmp_path: Path
) -> None:
    state = StateDir(mesh.root / "mallory")
    with state.lock():
        membership = state.membership()
    assert membership is not None
    founder = mesh.machine("r1")
    seal = PathSeal(
        membership.key, membership.mesh.id, membership.network_keys(time.time()), 7
    )  # fmt: skip
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
    with captured(third, "udp", "and", "src", founder.address) as got:
        began = time.monotonic()
        done = mesh.machine("mallory-out").run(
            [sys.executable, str(SCRIPT), "send", str(file), third.address, founder.address,
             str(PORT)], timeout_s=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        time.sleep(2.0)
        took = time.monotonic() - began
    assert 0 < len(got) <= min(count, ANSWERS_BURST + ANSWERS_PER_S * took + 16)
    assert {size for _, _, size in got} == {PROBE_BYTES}, "an answer is no larger than a question"


def test_a_flood_from_outside_gets_no_answer_and_stops_nothing(
    mesh: NatMesh, third: NatMachine
) -> None:
    founder = mesh.machine("r1")
    pid = int(mesh.get("r1", "/v1/status")["pid"])
    with captured(third, "udp", "and", "src", founder.address) as answers:
        flood = subprocess.Popen(
            third.command([sys.executable, str(SCRIPT), "flood", founder.address, str(PORT), "10"]),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(2.0)
        before, began = cpu_s(pid), time.monotonic()
        rtts = [mesh.ping("victim", "r1")["rtt_ms"] for _ in range(5)]
        share = (cpu_s(pid) - before) / (time.monotonic() - began)
        sent = int(flood.communicate(timeout=30)[0])
    assert answers == []
    assert all(rtt is not None for rtt in rtts)
    print(f"{sent / 10:.0f} datagrams/s, {share:.0%} of a core, RTTs {rtts}")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
