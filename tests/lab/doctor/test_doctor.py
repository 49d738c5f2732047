"""`agent doctor` on machines on which something is really wrong: two members, and one whose agent
is down.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.demo.fleet import Fleet
from agent.demo.mesh import AgentLab
from agent.demo.netlab import Lan

ROOT = Path("/run/covey-doctor")
ONE, TWO, LONE = "d0", "d1", "e0"
# Of a command on a machine with much other work.
LIMIT_S = 300.0
AGENT = [sys.executable, "-m", "agent"]
CLOSED = (
    "add table inet shut; add chain inet shut input "
    "{ type filter hook input priority 0; policy drop; }; "
    "add rule inet shut input ct state established,related accept; "
    "add rule inet shut input iifname lo accept; "
    "add rule inet shut input meta l4proto ipv6-icmp accept; "
    "add rule inet shut input tcp dport 0-65535 accept"
)
LATE = "import time\ntrue_s = time.time\ntime.time = lambda: true_s() - 172_800\n"


@pytest.fixture(scope="module")
def lone() -> AgentLab:
    """A member whose agent was not started."""
    made = AgentLab(ROOT / "lone", Lan(6))
    made.lab.add(LONE)
    made.agent(LONE, "mesh", "create", "home", timeout_s=LIMIT_S)
    return made


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    made = Fleet(ROOT, 2, lan=5, letter="d")
    made.join_all()
    made.wait_connected(ONE, 1)
    yield made


def run(fleet: Fleet, name: str, *command: str) -> None:
    done = fleet.machine(name).run(command)
    assert done.returncode == 0, done.stderr


def examined(
    lab: AgentLab, name: str, *, prefix: Sequence[str] = (), **variables: str
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run `agent doctor --json` on a machine; return its exit code and the items by code."""
    done: subprocess.CompletedProcess[str] = lab.machine(name).run(
        [*prefix, *AGENT, "doctor", "--json"], env=lab.environment(name) | variables,
        timeout_s=LIMIT_S,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, {item["code"]: item for item in json.loads(done.stdout)["items"]}


def faults(lab: AgentLab, name: str, **more: Any) -> dict[str, dict[str, Any]]:
    _, items = examined(lab, name, **more)
    return {code: i for code, i in items.items() if i["severity"] in ("warning", "error")}


@contextmanager
def changed(fleet: Fleet, name: str, change: Sequence[str], back: Sequence[str]) -> Iterator[None]:
    """Change something on a machine for as long as the block lasts."""
    run(fleet, name, *change)
    try:
        yield
    finally:
        run(fleet, name, *back)


def test_members_that_are_well_have_no_fault(fleet: Fleet) -> None:
    for name in (ONE, TWO):
        code, items = examined(fleet, name)
        assert {i["code"]: i for i in items.values() if i["severity"] in ("warning", "error")} == {}
        assert code == 0
        assert items["sees-only-itself"]["text"] == "1 of 1 others are connected."
        assert items["mdns-blocked"]["severity"] == "ok"


def test_a_firewall_that_drops_udp(fleet: Fleet) -> None:
    with changed(fleet, TWO, ["nft", CLOSED], ["nft", "delete table inet shut"]):
        _, items = examined(fleet, TWO)
        assert items["firewall-drops"]["severity"] == "warning"
        assert "IPv4 to UDP 51820 on eth0: inet shut input" in items["firewall-drops"]["details"]
        assert "drops UDP 5353" in items["mdns-blocked"]["text"]
        run(fleet, TWO, "nft", "add rule inet shut input udp dport { 5353, 51820 } accept")
        assert "firewall-drops" not in faults(fleet, TWO)


def test_another_vpn_that_takes_all_traffic(fleet: Fleet) -> None:
    made = "tuntap add dev vpn0 mode tun".split()
    with changed(fleet, TWO, ["ip", *made], ["ip", "link", "del", "vpn0"]):
        run(fleet, TWO, "ip", "address", "add", "198.51.100.2/24", "dev", "vpn0")
        run(fleet, TWO, "ip", "link", "set", "vpn0", "up")
        _, items = examined(fleet, TWO)
        assert items["vpn-beside"]["details"] == ["vpn0 (tun)"]
        run(fleet, TWO, "ip", "route", "add", "0.0.0.0/1", "dev", "vpn0")
        assert "vpn0" in faults(fleet, TWO)["vpn-takes-all"]["text"]


def test_a_link_that_carries_too_little(fleet: Fleet) -> None:
    way = ["default", "via", fleet.machine(ONE).address]
    with changed(fleet, TWO, ["ip", "route", "add", *way], ["ip", "route", "del", *way]):
        assert "mtu-small" not in faults(fleet, TWO)
        small, usual = ([*"ip link set eth0 mtu".split(), size] for size in ("1300", "1500"))
        with changed(fleet, TWO, small, usual):
            assert faults(fleet, TWO)["mtu-small"]["details"] == ["eth0: 1300 bytes"]


def test_rights_that_are_missing(lone: AgentLab) -> None:
    code, items = examined(lone, LONE)
    assert code == 1
    assert items["agent-down"]["severity"] == "error"
    assert items["port-taken"]["severity"] == "ok"
    for right, said in (("net_admin", "rights-missing"), ("net_raw", "raw-sockets-missing")):
        without = ["setpriv", "--bounding-set", f"-{right}", "--inh-caps", f"-{right}"]
        assert said in faults(lone, LONE, prefix=without)


def test_a_port_that_is_taken(lone: AgentLab) -> None:
    holding = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "s.bind(('', 51820)); print('bound', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        lone.machine(LONE).command([sys.executable, "-c", holding]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"bound\n"
        (line,) = faults(lone, LONE)["port-taken"]["details"]
        assert holder.stdin is not None
        holder.stdin.close()
    assert line.startswith("UDP 51820 (network.listen_port): python")
    assert line.endswith(f"(pid {holder.pid})")


def test_without_the_tun_device_wireguard_go_cannot_be(lone: AgentLab) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "-"]
    found = faults(lone, LONE, prefix=hidden, COVEY_NETWORK_BACKEND="userspace")
    assert "there is no /dev/net/tun" in found["tun-missing"]["text"]


def test_a_clock_that_is_behind(lone: AgentLab, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LATE)
    before = lone.environment(LONE).get("PYTHONPATH", "")
    found = faults(lone, LONE, PYTHONPATH=f"{tmp_path}{os.pathsep}{before}")
    assert "a time before" in found["clock-behind"]["text"]
