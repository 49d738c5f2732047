"""Paths measured: time to the first packet and to a direct path for each class of NATs, and gaps.

    python tests/bench/paths.py [--quick] [--json FILE]

Real agents behind real NATs in namespaces (tests/lab/nat). Both agents of a pair are brought up,
and the clock runs from when both say that they are up. A gap is the longest time that a TCP stream
over the overlay stands still when its path changes under it; where packets get lost, the same
stream without Covey is the peer. `relay.py` measures throughput.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from report import Row, conditions, finish, parser, percentiles, row

LAB = Path(__file__).parents[1] / "lab" / "nat"
# Class, the kinds of the two sites, the goals in s: first packet, direct (p95).
PAIRS = (
    ("public/easy", "public", "easy", 2.0, None),
    ("easy/easy", "easy", "easy", 2.0, 1.0),
    ("easy/hard", "easy", "hard", 2.0, 6.0),
    ("hard/hard", "hard", "hard", 2.0, None),
    ("UDP blocked/easy", "blocked", "easy", 3.0, None),
    ("same LAN", "lan", "lan", 2.0, None),
)
GAP_GOAL_S = 3.0
GAP_LIMIT = (
    "TCP's own repetitions are in it: 1.4, 3.0, 6.2 s after the last packet that got through"
)
LIMIT = "rendezvous, relays and both ends share two cores, without delay between them"


def main() -> int:
    """Parse flags, measure inside a sandbox, print one table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    arguments = flags.parse_args()
    rows: list[Row]
    if arguments.part:
        sys.path.insert(0, str(LAB))
        rows = measure(3 if arguments.quick else 20) + gaps(1 if arguments.quick else 10)
        arguments.part.write_text(json.dumps(rows))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "agent.demo.sandbox", "--", sys.executable, __file__]
        command += ["--part", str(file), *(["--quick"] if arguments.quick else [])]
        code = subprocess.run(command, check=False).returncode
        if code != 0:
            raise SystemExit(f"measuring failed with exit code {code}")
        rows = json.loads(file.read_text())
    finish("paths", conditions(quick=arguments.quick), rows, arguments.json)
    return 0


def measure(repeats: int) -> list[Row]:
    """Bring each pair up so many times, both ways of starting in turn."""
    from matrix import End
    from nat_agents import NatMesh

    from agent.demo.natlab import NatLab

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, NatLab() as lab:
        rendezvous = [lab.add(name, "public") for name in ("r1", "r2")]
        ends = {}
        for index, (name, one, two, _, _) in enumerate(PAIRS):
            if one == two == "lan":
                site = lab.add(f"p{index}", one, machines=2)
                ends[name] = End(site, site.machines[0]), End(site, site.machines[1])
                continue
            sites = [lab.add(f"p{index}{side}", kind) for side, kind in (("a", one), ("b", two))]
            ends[name] = End(sites[0], sites[0].machines[0]), End(sites[1], sites[1].machines[0])
        with NatMesh(Path(folder), lab, rendezvous) as mesh:
            mesh.join([end.machine.name for pair in ends.values() for end in pair])
            for name, _, _, first_goal, direct_goal in PAIRS:
                one, two = ends[name]
                results = []
                for turn in range(repeats):
                    starter, other = (one, two) if turn % 2 == 0 else (two, one)
                    results.append(mesh.connect(starter, other))
                    print(f"  {name}: {results[-1]}", file=sys.stderr, flush=True)
                rows += _rows(name, results, first_goal, direct_goal)
    return rows


def gaps(repeats: int) -> list[Row]:
    """Make each change under a stream so many times; one that loses a byte ends the bench."""
    from stream_changes import CHANGES, DOWN_UP, LOSS, PlainTcp, StreamLab

    # The quick run is to end within five minutes.
    changes = [each for each in CHANGES if repeats > 1 or each.name != DOWN_UP]
    found: dict[str, list[float]] = {change.name: [] for change in changes}
    peers: list[float] = []
    with tempfile.TemporaryDirectory() as folder, StreamLab(Path(folder)) as lab:
        plain = PlainTcp(lab.nat, Path(folder))
        for _ in range(repeats):
            for change in changes:
                found[change.name].append(lab.measure(change))
                said = f"  {change.name}: {found[change.name][-1]:.2f} s"
                if change.name == LOSS:
                    peers.append(plain.loss())
                    said += f", {peers[-1]:.2f} s without Covey"
                print(said, file=sys.stderr, flush=True)
        lab.end()
        plain.end()
    rows: list[Row] = []
    for name, values in found.items():
        p50, p95 = percentiles(values)
        their_p50, their_p95 = percentiles(peers) if name == LOSS else (None, None)
        longest = row(f"gap, {name}: longest", max(values), "s", goal=GAP_GOAL_S, limit=GAP_LIMIT,
                      peer=max(peers) if name == LOSS else None)  # fmt: skip
        rows += [row(f"gap, {name}: p50", p50, "s", peer=their_p50),
                 row(f"gap, {name}: p95", p95, "s", peer=their_p95), longest]  # fmt: skip
    return rows


def _rows(
    name: str, results: Sequence[object], first_goal: float, direct_goal: float | None
) -> list[Row]:
    first = [r.first_s for r in results if r.first_s is not None]  # type: ignore[attr-defined]
    direct = [r.direct_s for r in results if r.direct_s is not None]  # type: ignore[attr-defined]
    count = len(results)
    rows = [row(f"{name}: pairs that carry traffic", 100 * len(first) / count, "%", goal=100,
                higher=True)]  # fmt: skip
    if first:
        p50, p95 = percentiles(first)
        rows += [row(f"{name}: first packet, p50", p50, "s", limit=LIMIT),
                 row(f"{name}: first packet, p95", p95, "s", goal=first_goal)]  # fmt: skip
    if direct:
        p50, p95 = percentiles(direct)
        share = 100 * len(direct) / count
        rows += [row(f"{name}: direct, of all", share, "%",
                     goal=95 if direct_goal else None, higher=True),
                 row(f"{name}: direct, p50", p50, "s"),
                 row(f"{name}: direct, p95", p95, "s", goal=direct_goal)]  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main())
