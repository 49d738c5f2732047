"""Machines and networks that are not as they should be: the agent says so, and does what it can.

No CAP_NET_RAW, a clock two days off, a firewall that drops everything, a link of 576 bytes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nat_agents import NatMesh
from nat_stream import Stream, expected

from agent.demo.natlab import NatLab

pytestmark = pytest.mark.timeout(400)

# Somebody else may have both cores.
LIMIT_S = 60.0
# Python reads this at start: its clock is two days ahead, WireGuard's is not.
SKEW = """import time
true_s, true_ns = time.time, time.time_ns
time.time = lambda: true_s() + 172_800
time.time_ns = lambda: true_ns() + 172_800 * 10**9
"""
WITHOUT_RAW = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]


ACL = '[[rule]]\nfrom="*"\nto="*"\nports=["tcp:7100"]\naction="allow"\n'


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatMesh]:
    with NatLab() as nat:
        founder = nat.add("r1", "public")
        for name, kind in (
            ("bare", "public"),
            ("late", "public"),
            ("shut", "public"),
            ("narrow", "easy"),
        ):
            nat.add(name, kind)
        with NatMesh(tmp_path_factory.mktemp("bad"), nat, [founder]) as made:
            made.acl.write_text(ACL)
            for name in ("bare", "late", "shut", "narrow"):
                made.join([name])
            yield made


def until(what: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """Return what is asked once it is something."""
    deadline = time.monotonic() + limit_s
    while not (got := what()):
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.2)
    return got


def test_without_cap_net_raw_it_says_so_and_reaches_who_is_where_the_record_says(
    mesh: NatMesh,
) -> None:
    command = [*WITHOUT_RAW, sys.executable, "-m", "agent", "up"]
    done = mesh.machine("bare").run(command, env=mesh.environment("bare"), timeout_s=120)
    assert done.returncode == 0, done.stderr
    try:
        (item,) = [i for i in mesh.get("bare", "/v1/status")["health"]
                   if i["code"] == "no-path-engine"]  # fmt: skip
        assert "CAP_NET_RAW" in item["text"]
        assert "AmbientCapabilities" in item["what_to_do"]
        assert "CAP_NET_RAW" in mesh.agent("bare", "netcheck").splitlines()[-1]
        assert until(lambda: mesh.ping("bare", "r1")["rtt_ms"]) > 0
    finally:
        mesh.agent("bare", "down")


def test_a_firewall_that_drops_everything_is_named_and_nothing_hangs(mesh: NatMesh) -> None:
    site = mesh.nat.sites["shut"]
    mesh.agent("shut", "up")
    try:
        assert until(lambda: mesh.ping("shut", "r1")["rtt_ms"]) > 0
        mesh.nat.loss(site, 100)

        def verdict() -> str:
            began = time.monotonic()
            said: str = mesh.get("shut", "/v1/netcheck")["verdict"]
            mesh.get("shut", "/v1/status")
            assert time.monotonic() - began < 20
            return said if said.startswith("Nothing gets out of here") else ""

        # Its control connections are given up only after the keepalives of TCP's own.
        assert "firewall" in until(verdict, 120)
        mesh.nat.loss(site, 0)
        assert until(lambda: mesh.ping("shut", "r1")["rtt_ms"]) > 0
    finally:
        mesh.nat.loss(site, 0)
        mesh.agent("shut", "down")


def test_a_clock_two_days_off_is_named_and_stops_no_probe(mesh: NatMesh, tmp_path: Path) -> None:
    """Probes have no time in them; discovery's datagrams do, and are refused."""
    (tmp_path / "sitecustomize.py").write_text(SKEW)
    environment = mesh.environment("late")
    path = f"{tmp_path}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    done = mesh.machine("late").run(
        [sys.executable, "-m", "agent", "up"], env=environment | {"PYTHONPATH": path},
        timeout_s=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    def named() -> list[Any]:
        # By what others tell in gossip; discovery's datagrams go both ways unanswered.
        return [i for i in mesh.get("late", "/v1/status")["health"] if i["code"] == "clock-differs"]

    try:
        item = until(named)[0]
        assert "clock" in item["what_to_do"]
        assert mesh.ping("r1", "late")["rtt_ms"] is None
        (founder,) = [p for p in mesh.get("late", "/v1/peers")["peers"] if p["name"] == "r1"]
        assert founder["route"] in ("public", "ipv6")
    finally:
        mesh.agent("late", "down")


def test_a_link_of_576_bytes_carries_a_stream(mesh: NatMesh, tmp_path: Path) -> None:
    """WireGuard's packets, for 1280 inside, come as IPv4 fragments; none is lost."""
    narrow = mesh.machine("narrow")
    done = narrow.run(["ip", "link", "set", "eth0", "mtu", "576"])
    assert done.returncode == 0, done.stderr
    mesh.agent("narrow", "up")
    try:
        until(lambda: mesh.ping("narrow", "r1")["rtt_ms"])
        time.sleep(1.5)  # the ACL's file is looked at each second
        address = mesh.get("r1", "/v1/status")["ipv6"]
        stream = Stream(tmp_path, narrow, mesh.machine("r1"), address, 7100)
        time.sleep(3)
        sent, sent_digest, came, came_digest = stream.end()
        assert came == sent > 16 * 1024
        assert sent_digest == came_digest == expected(sent)
    finally:
        mesh.agent("narrow", "down")
