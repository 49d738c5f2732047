"""A killed agent's WireGuard goes on, the next agent adopts it, and `agent down` leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.demo.fleet import Fleet, wait_until

ROOT = Path("/run/covey-outlive")
ECHOED = Path(__file__).parent / "echoed.py"
# Among those that members may reach of each other by default.
PORT = 7150
# Without an agent: past the moment at which the others have taken it for gone and rest it.
ALONE_S = 30.0
# TCP alone repeats after 0.2 to 0.4 s; what is lost is a packet or two at most.
GAP_S = 2.0


class Outlive(Fleet):
    """A few agents whose overlay stays for a while."""

    outlive_s = "600"

    def environment(self, name: str) -> dict[str, str]:
        return super().environment(name) | {"COVEY_NETWORK_OUTLIVE_S": self.outlive_s}

    def wireguard_go(self, name: str) -> list[int]:
        """Return the pids of the wireguard-go processes of a machine's interface."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"covey-{name}".encode() in words and b"-f" in words:
                found.append(int(process.name))
        return found

    def left(self, name: str) -> str:
        """Return what there is of an overlay on a machine: interface, tables, routes, processes."""
        machine = self.machine(name)
        told = [
            machine.run(["ip", "-br", "link", "show", f"covey-{name}"]).stdout,
            machine.run(["nft", "list", "tables"]).stdout,
            machine.run(["ip", "route", "show", "table", "all", "metric", "51820"]).stdout,
            machine.run(["ip", "-6", "route", "show", "table", "all", "metric", "51820"]).stdout,
        ]
        processes = [
            str(process)
            for process in Path("/proc").glob("[0-9]*")
            if f"covey-{name}".encode() in read(process / "cmdline")
        ]
        return "".join(told).strip() + " ".join(processes)


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


class Stream:
    """A stream from one machine to another over the overlay."""

    def __init__(self, fleet: Fleet, one: str, other: str) -> None:
        address = str(fleet.status(other)["ipv6"])
        program = [sys.executable, str(ECHOED)]
        self._server = subprocess.Popen(
            fleet.machine(other).command([*program, "serve", address, str(PORT)]),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "listening\n"
        self._client = subprocess.Popen(
            fleet.machine(one).command([*program, "ask", address, str(PORT)]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def look(self) -> dict[str, Any]:
        """Return the next line that it says, within a second or two."""
        assert self._client.stdout is not None
        line = self._client.stdout.readline()
        assert line, "the stream has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def follow(self, seconds: float) -> dict[str, Any]:
        """Return what it says after some time; fails when nothing comes back meanwhile."""
        began, first = time.monotonic(), self.look()
        found = first
        while time.monotonic() - began < seconds:
            found = self.look()
        assert found["echoed"] > first["echoed"]
        return found

    def close(self) -> None:
        for process in (self._client, self._server):
            process.kill()
            process.communicate(timeout=20)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Outlive]:
    made = Outlive(ROOT, 3, lan=4, letter="k")
    made.join_all(2)
    for name in made.names:
        made.wait_connected(name, 2)
    try:
        yield made
    finally:
        for log in sorted(ROOT.glob("*/agent.log")):
            print(f"== {log}\n{log.read_text()[-12000:]}")


def killed(fleet: Outlive, name: str) -> int:
    """Kill an agent alone and return the pid that it had."""
    pid = int(fleet.status(name)["pid"])
    os.kill(pid, signal.SIGKILL)
    wait_until(f"{name}'s agent is dead", lambda: not Path(f"/proc/{pid}").exists())
    return pid


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("one", "other"), [("k1", "k2"), ("k2", "k1")])
def test_a_stream_goes_on_while_no_agent_runs_and_when_it_is_back(
    fleet: Outlive, one: str, other: str
) -> None:
    (before,) = fleet.wireguard_go(one)
    stream = Stream(fleet, one, other)
    try:
        stream.follow(3.0)
        killed(fleet, one)
        alone = stream.follow(ALONE_S)
        assert fleet.wireguard_go(one) == [before]
        assert alone["gap_s"] < GAP_S
        fleet.agent(one, "up")
        back = stream.follow(10.0)
        assert fleet.wireguard_go(one) == [before], "the new agent goes on with it"
        print(f"longest pause alone {alone['gap_s']:.3f} s, after the return {back['gap_s']:.3f} s")
        assert back["gap_s"] < GAP_S
        wait_until("the path is known again", lambda: all(
            fleet.peers(a)[b].get("route") == "lan" for a, b in ((one, other), (other, one))
        ))  # fmt: skip
        assert fleet.status(one)["health"] == []
    finally:
        stream.close()


def test_down_takes_away_what_was_adopted(fleet: Outlive) -> None:
    killed(fleet, "k1")
    assert fleet.left("k1")
    fleet.agent("k1", "up")
    assert len(fleet.wireguard_go("k1")) == 1
    fleet.agent("k1", "down")
    wait_until("nothing is left", lambda: not fleet.left("k1"), 10)
    fleet.agent("k1", "up")


def test_down_without_an_agent_takes_away_what_a_killed_one_left(fleet: Outlive) -> None:
    killed(fleet, "k1")
    done = fleet.try_agent("k1", "down", "--json")
    assert done.returncode == 0, done.stderr
    assert "interface covey-k1" in json.loads(done.stdout)["removed"]
    wait_until("nothing is left", lambda: not fleet.left("k1"), 10)
    done = fleet.try_agent("k1", "down")
    assert done.returncode == 10
    assert "no agent is running" in done.stderr
    fleet.agent("k1", "up")
    fleet.wait_connected("k1", 2)


def test_what_nobody_comes_back_for_goes_by_itself(fleet: Outlive) -> None:
    fleet.agent("k1", "down")
    fleet.outlive_s = "3"
    fleet.agent("k1", "up")
    killed(fleet, "k1")
    assert len(fleet.wireguard_go("k1")) == 1
    wait_until("it has gone by itself", lambda: not fleet.wireguard_go("k1"), 15)
    assert fleet.machine("k1").run(["ip", "link", "show", "covey-k1"]).returncode != 0
    fleet.agent("k1", "up")
    fleet.wait_connected("k1", 2)
