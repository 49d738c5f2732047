"""`agent doctor` on machines on which something is really wrong: two members on one LAN."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.demo.fleet import Fleet, wait_until
from agent.doctor import bundle, redact, watch
from agent.membership.store import StateDir

ROOT = Path("/run/covey-doctor")
ONE, TWO = "d0", "d1"
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
# Until the agent's own looks have come around, on a machine with other work.
OWN_LOOK_S = watch.FIRST_S + 120


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
    fleet: Fleet, name: str, *, prefix: Sequence[str] = (), **variables: str
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run `agent doctor --json` on a machine; return its exit code and the items by code."""
    done: subprocess.CompletedProcess[str] = fleet.machine(name).run(
        [*prefix, *AGENT, "doctor", "--json"], env=fleet.environment(name) | variables,
        timeout_s=120,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, {item["code"]: item for item in json.loads(done.stdout)["items"]}


def faults(fleet: Fleet, name: str, **more: Any) -> dict[str, dict[str, Any]]:
    _, items = examined(fleet, name, **more)
    return {code: i for code, i in items.items() if i["severity"] in ("warning", "error")}


@contextmanager
def changed(fleet: Fleet, name: str, change: Sequence[str], back: Sequence[str]) -> Iterator[None]:
    """Change something on a machine for as long as the block lasts."""
    run(fleet, name, *change)
    try:
        yield
    finally:
        run(fleet, name, *back)


@contextmanager
def stopped(fleet: Fleet, name: str) -> Iterator[None]:
    """Have no agent on a machine for as long as the block lasts."""
    fleet.agent(name, "down")
    try:
        yield
    finally:
        fleet.agent(name, "up")


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


def test_rights_that_are_missing_and_a_port_that_is_taken(fleet: Fleet) -> None:
    with stopped(fleet, TWO):
        code, items = examined(fleet, TWO)
        assert code == 1
        assert items["agent-down"]["severity"] == "error"
        assert items["port-taken"]["severity"] == "ok"
        for right, said in (("net_admin", "rights-missing"), ("net_raw", "raw-sockets-missing")):
            without = ["setpriv", "--bounding-set", f"-{right}", "--inh-caps", f"-{right}"]
            assert said in faults(fleet, TWO, prefix=without)
        holding = (
            "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
            "s.bind(('', 51820)); print('bound', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            fleet.machine(TWO).command([sys.executable, "-c", holding]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as holder:  # fmt: skip
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"bound\n"
            (line,) = faults(fleet, TWO)["port-taken"]["details"]
            assert line.startswith("UDP 51820 (network.listen_port): python")
            assert line.endswith(f"(pid {holder.pid})")
            assert holder.stdin is not None
            holder.stdin.close()


def test_without_the_tun_device_wireguard_go_cannot_be(fleet: Fleet) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "-"]
    with stopped(fleet, TWO):
        found = faults(fleet, TWO, prefix=hidden, COVEY_NETWORK_BACKEND="userspace")
    assert "there is no /dev/net/tun" in found["tun-missing"]["text"]


def test_a_clock_that_is_behind(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LATE)
    before = fleet.environment(TWO).get("PYTHONPATH", "")
    found = faults(fleet, TWO, PYTHONPATH=f"{tmp_path}{os.pathsep}{before}")
    assert "a time before" in found["clock-behind"]["text"]


def test_the_report_has_no_secret_of_the_node(fleet: Fleet, tmp_path: Path) -> None:
    out, ticket = tmp_path / "report.tar.gz", fleet.ticket()
    log = fleet.root / ONE / "agent.log"
    log.write_text(f"{log.read_text()}INFO joined with {ticket}\n")
    fleet.agent(ONE, "doctor", "--bundle", str(out))
    whole = gzip.decompress(out.read_bytes()).decode()
    secrets = list(bundle._secret_bytes(StateDir(fleet.root / ONE).path))
    assert len(secrets) >= 5
    assert [one for raw in secrets for one in redact.forms(raw) if one in whole] == []
    assert ticket not in whole
    assert f'"name": "{TWO}"' in whole


def test_the_agent_itself_tells_of_a_conflict_and_of_being_alone(fleet: Fleet) -> None:
    taken = ["10.77.200.1/24", "dev", "eth0"]
    add, remove = (["ip", "address", word, *taken] for word in ("add", "del"))
    with changed(fleet, TWO, add, remove):
        item = faults(fleet, TWO)["address-conflict"]
        assert item["details"] == ["eth0 has 10.77.200.1/24"]

        def told() -> bool:
            return item["code"] in [i["code"] for i in fleet.status(TWO)["health"]]

        wait_until("its status tells of it", told, OWN_LOOK_S)
        status = fleet.agent(TWO, "status")
        assert "1 warning; `agent doctor` looks closer" in status
        assert item["title"] in status
    with stopped(fleet, ONE):
        wait_until("it is alone", lambda: "sees-only-itself" in faults(fleet, TWO), 120)
