"""Whole agents with the kernel's WireGuard behind real NATs, and what is left of them afterwards.

r has a public address; a and b sit behind a NAT each. Each machine has things of its operator's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nat_agents import NatMesh
from patient import be_patient

from agent.demo.natlab import NatLab, Site, load
from agent.demo.natrules import KINDS
from agent.errors import CoveyError

# Emulated, an agent takes half a minute to come up, and minutes where the machine is busy.
pytestmark = pytest.mark.timeout(900)
LIMIT_S = 180.0
OPERATOR = """
table inet operator {
  chain input {
    type filter hook input priority filter; policy accept;
    tcp dport 9 drop
  }
  chain forward { type filter hook forward priority filter; policy accept; }
}
table ip operator-nat {
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 203.0.113.0/24 masquerade
  }
}
"""
# What there is to see of a machine; counters and ages are not shown.
SHOWN = (
    "nft -s list ruleset", "ip -o link", "ip -o address", "ip rule", "ip -6 rule",
    "ip route show table all", "ip -6 route show table all", "tc qdisc", "wg show all dump",
    "ss -Hanu", "ss -Hanw", "ss -Htln",
    "grep -sr . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf",
)  # fmt: skip


class Mesh(NatMesh):
    """The mesh, the sites, and what the machines were like before."""

    def __init__(self, root: Path, lab: NatLab) -> None:
        self.sites = [lab.add("r", "public"), lab.add("a", "easy"), lab.add("b", "easy")]
        for number, site in enumerate(self.sites, 1):
            self._operate(site, number)
        self.before = self.shown()
        super().__init__(root, lab, self.sites[:1])
        for name in "ab":
            self.join([name], stay=True)

    def _operate(self, site: Site, number: int) -> None:
        """Give a machine rules, routes and interfaces that are its operator's."""
        machine = site.machines[0]
        load(machine.name, OPERATOR)
        via = f"via {machine.gateway} dev eth0 onlink"
        # Where the operator forwards, a relay does so in the kernel.
        for command in (
            "sysctl -qw net.ipv4.ip_forward=1",
            "ip link add operator0 type dummy",
            f"ip address add 203.0.113.{number}/32 dev operator0",
            "ip link set operator0 up",
            "ip link add wg-own type wireguard",
            "wg set wg-own listen-port 51999",
            f"ip address add 172.31.0.{number}/24 dev wg-own",
            "ip link set wg-own up",
            f"ip route add 198.51.100.0/24 {via}",
            f"ip route add default {via} table 77",
            f"ip rule add from 203.0.113.{number} table 77 priority 1000",
        ):
            done = machine.run(command.split())
            assert done.returncode == 0, (command, done.stderr)

    def shown(self) -> dict[tuple[str, str], str]:
        """Return what each machine's commands show, and the files that all of them share."""
        found = {
            (site.name, command): _sorted(site.machines[0].run(command.split()).stdout)
            for site in self.sites
            for command in SHOWN
        }
        for folder in ("/run", "/dev/shm"):
            names = (os.path.join(at, name) for at, _, files in os.walk(folder) for name in files)
            found["all", folder] = "\n".join(sorted(names))
        return found

    def try_agent(
        self, name: str, *arguments: str, timeout_s: float = 600
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(Path(__file__).with_name("patient.py")), *arguments]
        return self.machine(name).run(command, env=self.environment(name), timeout_s=timeout_s)

    def agent(self, name: str, *arguments: str, timeout_s: float = 600) -> str:
        began = time.monotonic()
        try:
            return super().agent(name, *arguments, timeout_s=timeout_s)
        finally:
            # So that a guest that is cut off shows how far it came.
            took = time.monotonic() - began
            Path("/dev/console").write_text(f"{name}: agent {arguments[0]}, {took:.1f} s\n")

    def part(self, name: str, part: str) -> str:
        said: str = self.get(name, "/v1/status")["parts"][part]
        return said

    def route(self, name: str, peer: str) -> str:
        """Return how `peer` is reached, if it answers just now."""
        try:
            answer = self.ping(name, peer)
        except CoveyError:
            return "none"
        return str(answer["route"]) if answer["rtt_ms"] is not None else "none"

    def until(self, true: Callable[[], object]) -> float:
        """Wait until it is true; return the seconds."""
        began = time.monotonic()
        while not true():
            if time.monotonic() - began > LIMIT_S:
                raise AssertionError("\n".join([*map(str, self._peers()), *self._logs()]))
            time.sleep(0.2)
        return time.monotonic() - began

    def _peers(self) -> list[object]:
        return [self.get(site.name, "/v1/peers")["peers"] for site in self.sites]

    def _logs(self) -> list[str]:
        return [f"== {log}\n{log.read_text()[-4000:]}" for log in self.root.glob("*/agent.log")]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    began = time.monotonic()
    be_patient()
    with NatLab() as lab:
        made = Mesh(tmp_path_factory.mktemp("mesh"), lab)
        print(f"three agents up after {time.monotonic() - began:.1f} s")
        yield made


def test_auto_takes_the_kernel(mesh: Mesh) -> None:
    for site in mesh.sites:
        name = site.name
        assert mesh.part(name, "overlay") == f"covey-{name} (kernel), UDP port 51820"
        shown = site.machines[0].run(["ip", "-d", "link", "show", f"covey-{name}"])
        assert " wireguard " in shown.stdout


def test_two_easy_nats_are_punched(mesh: Mesh) -> None:
    took = mesh.until(lambda: mesh.route("a", "b") == mesh.route("b", "a") == "punched")
    print(f"punched {took:.1f} s later")
    ends = [
        site.machines[0].run(["wg", "show", f"covey-{site.name}", "endpoints"]).stdout
        for site in mesh.sites[1:]
    ]
    for shown, other in zip(ends, reversed(mesh.sites[1:]), strict=True):
        assert f"\t{other.address}:51820\n" in shown


def test_two_hard_nats_are_relayed_by_nftables(mesh: Mesh) -> None:
    """The same two: their NATs are others from now on, and have forgotten all."""
    mesh.until(lambda: mesh.route("a", "b") == "punched")
    for site in mesh.sites[1:]:
        site.gateways[0].kind = KINDS["hard"]
        mesh.nat.forget(site)
    took = mesh.until(lambda: mesh.route("a", "b") == mesh.route("b", "a") == "relayed")
    print(f"relayed {took:.1f} s after the NATs had changed")
    assert "by the kernel" in mesh.part("r", "relay")
    mesh.until(lambda: _forwards(mesh.sites[0]))
    assert mesh.route("a", "b") == "relayed"


def _sorted(text: str) -> str:
    return "\n".join(sorted(text.splitlines()))


def _forwards(site: Site) -> bool:
    """Say whether packets of both sides have come to the relay's table, and gone from it."""
    table = ["inet", f"covey-relay-covey-{site.name}"]
    shown = site.machines[0].run(["nft", "list", "counters", "table", *table]).stdout
    counts = [int(packets) for packets in re.findall(r"packets (\d+)", shown)]
    return len(counts) >= 4 and sum(count > 0 for count in counts) >= 4


def test_down_leaves_nothing_and_has_touched_nothing(mesh: Mesh) -> None:
    for site in mesh.sites:
        rules = site.machines[0].run(SHOWN[0].split()).stdout
        for table in ("inet operator", "ip operator-nat"):
            theirs = f"nft -s list table {table}".split()
            assert site.machines[0].run(theirs).stdout in rules
        assert f"table inet covey-covey-{site.name}" in rules
    for site in mesh.sites:
        mesh.agent(site.name, "down")
    after = mesh.shown()
    for key, text in mesh.before.items():
        assert after[key] == text, key
    assert not list(mesh.root.glob("*/*.sock"))
