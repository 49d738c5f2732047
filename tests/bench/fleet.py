"""Agents in namespaces on one LAN, measured: joining, taking over a deployment, being idle.

Used by `mesh.py`, inside a sandbox. Times come from the agents' own logs (milliseconds) and from
outside probes; all processes share this machine's clock.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from report import Row, percentiles, row

from agent.client import CoveyError
from agent.demo.fleet import Fleet, kill_all

ROOT = Path("/run/covey-fleet")
PING = Path(__file__).parent / "first_ping.py"
_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \S+ (.*)$")
_LIMIT_S = 60.0
# An owner has been one for so long when it is killed: its deputies know it.
SETTLED_S = 3.0


def join_rows(quick: bool) -> list[Row]:
    """Join 20 machines one after another; from the process being up to member, and to a ping."""
    count = 8 if quick else 20
    fleet = Fleet(ROOT, count + 1)
    target = str(fleet.status(fleet.founder)["ipv6"])
    to_member, to_ping, whole, connection = [], [], [], []
    for name in fleet.names[1:]:
        ticket = fleet.ticket()
        pinger = subprocess.Popen(
            fleet.machine(name).command([sys.executable, str(PING), target, str(_LIMIT_S)]),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        began = time.time()
        fleet.agent(name, "join", ticket)
        answered = float(pinger.communicate(timeout=_LIMIT_S + 5)[0] or "nan")
        up = logged(fleet, name, "control plane up")
        to_member.append(logged(fleet, name, "mesh.joined") - up)
        connection.append(logged(fleet, name, "join.answered") - logged(fleet, name, "join.asking"))
        to_ping.append(answered - up)
        whole.append(answered - began)
    rows = []
    for name, values, goal in (
        ("join: process up to member", to_member, None),
        ("join: of that, connection and answer", connection, None),
        ("join: process up to first overlay ping", to_ping, 1.0),
        ("join: command typed to first overlay ping", whole, None),
    ):
        p50, p95 = percentiles(values)
        limit = "exo's users saw 143 and 313 ms for a connection" if "answer" in name else None
        rows += [row(f"{name}, p50", p50, "s", goal=goal, limit=limit),
                 row(f"{name}, p95", p95, "s")]  # fmt: skip
    return rows


def owner_rows(quick: bool) -> list[Row]:
    """Kill the agent that owns a deployment and time until another owns it; start it again."""
    fleet = Fleet(ROOT, 5)
    fleet.join_all(2)
    fleet.wait_connected(fleet.founder, 4)
    # The head stays where it was deployed, and is never killed: owners are what is measured.
    head = fleet.founder
    fleet.agent(head, "deploy", "covey-mini", "--nodes", "1")
    times: list[float] = []
    names = {fleet.status(name)["node"]: name for name in fleet.names}
    tried = 0
    while len(times) < (3 if quick else 12):
        tried += 1
        owner = _owner(fleet, head)
        if names[owner] == head:
            # Rendezvous chose the head itself: a deployment of another name has another owner.
            fleet.agent(head, "undeploy", _deployment(fleet, head)["name"])
            fleet.agent(head, "deploy", "covey-mini", "--nodes", "1", "--name", f"m{tried}")
            continue
        time.sleep(SETTLED_S)
        pid, children = fleet.pids(names[owner])
        began = time.monotonic()
        kill_all([pid])
        while (new := _owner(fleet, head)) in (owner, ""):
            if time.monotonic() - began > _LIMIT_S:
                raise SystemExit(f"nobody took over from {names[owner]}")
            time.sleep(0.01)
        times.append(time.monotonic() - began)
        print(f"  {names[owner]} → {names[new]} in {times[-1]:.2f} s", file=sys.stderr)
        kill_all(children)
        fleet.agent(names[owner], "up")
        # It is the rightful owner again once it is back.
        while _owner(fleet, head) != owner and time.monotonic() - began < _LIMIT_S:
            time.sleep(0.1)
    p50, p95 = percentiles(times)
    limit = "exo's users saw 3.0 to 3.5 s"
    return [row("owner killed to new owner, p50", p50, "s", goal=2.0, limit=limit),
            row("owner killed to new owner, p95", p95, "s", goal=2.0, limit=limit)]  # fmt: skip


def idle_rows(quick: bool) -> list[Row]:
    """Let agents settle, then measure each one's memory and CPU over half a minute or three."""
    # Paths that nobody needs any more are let go after three minutes.
    count, settle_s, watch_s = (12, 20, 20) if quick else (30, 200, 180)
    of = f"idle mesh of {count}:"
    fleet = Fleet(ROOT, count)
    # Thirty machines have thirty processors for what a newcomer means to them, here are two.
    fleet.join_all(1, pause_s=0.0 if quick else 3.0)
    fleet.wait_connected(fleet.founder, count - 1)
    time.sleep(settle_s)
    agents = {name: fleet.pids(name) for name in fleet.names}
    before = {name: _cpu_s([pid]) for name, (pid, _) in agents.items()}
    before_all = {name: _cpu_s([pid, *more]) for name, (pid, more) in agents.items()}
    time.sleep(watch_s)
    alone = [100 * (_cpu_s([p]) - before[n]) / watch_s for n, (p, _) in agents.items()]
    everything = [
        100 * (_cpu_s([p, *more]) - before_all[n]) / watch_s for n, (p, more) in agents.items()
    ]
    memory = [_memory_mb(pid, "Rss") for pid, _ in agents.values()]
    own = [_memory_mb(pid, "Pss") for pid, _ in agents.values()]
    return [
        row(f"{of} memory (RSS) of an agent, p50", percentiles(memory)[0], "MB",
            goal=150),
        row(f"{of} memory (RSS) of an agent, highest", max(memory), "MB", goal=150),
        row(f"{of} memory (PSS), p50", percentiles(own)[0], "MB",
            limit="agents on one machine share the pages of their libraries"),
        row(f"{of} CPU of an agent, p50", percentiles(alone)[0], "% of a core", goal=1),
        row(f"{of} CPU of an agent, highest", max(alone), "% of a core", goal=1),
        row(f"{of} CPU with wireguard-go, p50", percentiles(everything)[0],
            "% of a core"),
    ]  # fmt: skip


def logged(fleet: Fleet, name: str, text: str) -> float:
    """Return when (unix s) an agent first logged a line with `text`."""
    for line in (fleet.root / name / "agent.log").read_text().splitlines():
        match = _STAMP.match(line)
        if match and text in match[2]:
            return datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    raise SystemExit(f"{name} never logged {text!r}")


def _deployment(fleet: Fleet, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = fleet.get(name, "/v1/deployments")["deployments"]
    return found[0]


def _owner(fleet: Fleet, name: str) -> str:
    """Return the node id of the owner that the head obeys; "" while there is none."""
    try:
        return str(_deployment(fleet, name).get("owner") or "")
    except CoveyError:
        return ""


def _cpu_s(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int, kind: str) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1000
    raise SystemExit(f"/proc/{pid}/smaps_rollup says nothing of {kind}")
