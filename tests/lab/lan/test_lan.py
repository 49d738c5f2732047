"""Machines on one switch, with no address of each other: who finds whom, and what the LAN sees."""

from __future__ import annotations

import json
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from capture import capturing

from agent.demo.netlab import Lan, Machine
from agent.identity.keys import NodeKey
from agent.lan.announcement import SEALED_BYTES

HERE = Path(__file__).parent
GOAL_S = 1.0
NETWORK_KEY, OTHER_KEY = 7, 8
MDNS = 5353


def node_id(seed: int) -> str:
    return NodeKey(bytes([seed]) * 32).id.short


class Running:
    """One machine's beacon or newcomer, and all that it has said so far."""

    def __init__(self, machine: Machine, kind: str, seed: int, key: int, seconds: float) -> None:
        self.said: list[dict[str, Any]] = []
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._process = machine.spawn(
            [sys.executable, str(HERE / "node.py"), kind, str(seed), str(key), str(seconds)],
            output=subprocess.PIPE,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def until(self, what: Callable[[dict[str, Any]], bool], within_s: float = 20) -> dict[str, Any]:
        """Return the first thing it says, or has said, that is `what`."""
        deadline, at = time.monotonic() + within_s, 0
        while True:
            while at < len(self.said):
                if what(self.said[at]):
                    return self.said[at]
                at += 1
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"nothing of that came: {self.said}")
            self.said.append(json.loads(line))

    def event(self, name: str) -> dict[str, Any]:
        return self.until(lambda said: said["what"] == name)

    def found(self, seed: int) -> dict[str, Any]:
        return self.until(lambda said: said.get("node") == node_id(seed) and "addresses" in said)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)


@pytest.fixture(scope="module")
def lan() -> Lan:
    made = Lan(1)
    for name in ("desk", "shelf", "attic"):
        made.add(name)
    return made


@pytest.fixture
def run(lan: Lan) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(
        name: str,
        seed: int = 0,
        *,
        kind: str = "beacon",
        key: int = NETWORK_KEY,
        seconds: float = 60,
    ) -> Running:
        started.append(Running(lan.machines[name], kind, seed, key, seconds))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def seconds_to(found: dict[str, Any], since: dict[str, Any]) -> float:
    return float(found["at"]) - float(since["at"])


def test_members_find_each_other_within_a_second(
    lan: Lan, run: Callable[..., Running], capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = {"desk": 1, "shelf": 2, "attic": 3}
    running = {}
    for name, seed in seeds.items():
        running[name] = run(name, seed)
        running[name].event("started")
    times = []
    for name in seeds:
        for other, other_seed in seeds.items():
            if other == name:
                continue
            found = running[name].found(other_seed)
            both_there = max(
                running[name].event("start")["at"], running[other].event("start")["at"]
            )
            assert found["addresses"] == [lan.machines[other].address]
            assert found["control"] == 4000 + other_seed
            times.append(found["at"] - both_there)
    with capsys.disabled():
        print(f"\n  found after {', '.join(f'{seconds * 1e3:.1f}' for seconds in times)} ms")
    assert max(times) < GOAL_S


def test_a_newcomer_with_the_ticket_alone_finds_them_and_another_ticket_none(
    run: Callable[..., Running], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("desk", 1), ("shelf", 2)):
        run(name, seed).event("started")
    newcomer = run("attic", kind="find", seconds=2)
    times = [seconds_to(newcomer.found(seed), newcomer.event("start")) for seed in (1, 2)]
    with capsys.disabled():
        print(f"\n  found after {', '.join(f'{seconds * 1e3:.1f}' for seconds in times)} ms")
    assert max(times) < GOAL_S
    stranger = run("attic", kind="find", key=OTHER_KEY, seconds=1.5)
    stranger.event("stopped")
    assert [said["what"] for said in stranger.said] == ["start", "stopped"]


def test_a_laptop_that_comes_later_goes_and_comes_again(
    lan: Lan, run: Callable[..., Running]
) -> None:
    lan.add("laptop", plugged=False)
    desk = run("desk", 1)
    desk.event("started")
    laptop = run("laptop", 4)
    assert "no network interface" in laptop.event("fault")["message"]
    lan.plug("laptop")
    assert laptop.found(1)["addresses"] == [lan.machines["desk"].address]
    assert desk.found(4)["addresses"] == [lan.machines["laptop"].address]
    laptop.until(lambda said: said["what"] == "fault" and said["message"] is None)
    before = len(laptop.said)
    lan.unplug("laptop")
    laptop.until(lambda said: bool(said.get("message")) and said in laptop.said[before:])
    # It comes back with another address, which is news to the desk, and the best one.
    lan.machines["laptop"] = Machine("laptop", "198.19.1.200", "")
    lan.plug("laptop")
    desk.until(lambda said: said.get("addresses", [""])[0] == "198.19.1.200")


def test_a_newcomer_whose_port_another_program_keeps_finds_members_all_the_same(
    lan: Lan, run: Callable[..., Running]
) -> None:
    keep = (
        "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        f"s.bind(('', {MDNS})); print('kept', flush=True); time.sleep(60)"
    )
    holder = lan.machines["attic"].spawn([sys.executable, "-c", keep], output=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"kept\n"
        run("desk", 1).event("started")
        # It hears no multicast over IPv4, but what it asks is answered directly.
        newcomer = run("attic", kind="find", seconds=5)
        newcomer.found(1)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_other_programs_see_a_service_and_the_wire_carries_nothing_readable(
    lan: Lan, run: Callable[..., Running], tmp_path: Path
) -> None:
    file = tmp_path / "lan.pcap"
    at_switch = ["nsenter", f"--net=/run/netns/{lan.switch}"]
    with capturing(lambda command: [*at_switch, *command], file, "udp", link="switch"):
        members = [run("desk", 1), run("shelf", 2)]
        for member in members:
            member.event("started")
        foreign = [sys.executable, str(HERE / "foreign.py"), "2", "2.5", "20"]
        done = lan.machines["attic"].run(foreign)
        for member in members:
            member.stop()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(seen) == 2
    for name, (text, port, addresses) in seen.items():
        label = name.removesuffix("._covey._udp.local.")
        assert len(label) == 16
        assert int(label, 16) >= 0
        # Two strings: a length and two characters each.
        assert len(text) // 2 == SEALED_BYTES + 2 * 3
        assert (port, addresses) == (0, [])
    everything = file.read_bytes()
    assert everything.count(b"\x06_covey") > 10
    host = socket.gethostname().encode()  # as a name in mDNS: a short one is in any noise
    secrets = [b"m" * 32, bytes([NETWORK_KEY]) * 32, bytes([len(host)]) + host + b"\x05local"]
    for seed in (1, 2):
        node = NodeKey(bytes([seed]) * 32).id
        secrets += [node.ed25519, node.wireguard_public, str(node).encode()]
        secrets.append(struct.pack("!H", 4000 + seed) + struct.pack("!H", 4001))
    for secret in secrets:
        assert secret not in everything


def test_no_question_that_is_sent_to_a_machine_itself_is_answered(
    lan: Lan, run: Callable[..., Running]
) -> None:
    """What could come from outside the LAN; a multicast from there cannot."""
    run("desk", 1).event("started")
    ask = (
        "import socket; from agent.lan import dns; "
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.7); "
        "s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(<own>)); "
        "s.sendto(dns.question(1), (<to>, dns.PORT)); "
        "print(len(s.recv(2000)))"
    )
    answers = []
    for to in ("224.0.0.251", lan.machines["desk"].address):
        text = ask.replace("<to>", repr(to)).replace("<own>", repr(lan.machines["attic"].address))
        done = lan.machines["attic"].run([sys.executable, "-c", text])
        answers.append(done.stdout.strip())
    assert int(answers[0]) > SEALED_BYTES
    assert answers[1] == ""
