"""The mesh measured: joining, finding, telling, taking over, and what it costs to be idle.

    python tests/bench/mesh.py [--quick] [--json FILE] [--only PART]…

| part | what runs |
|---|---|
| join | agents in namespaces on one LAN: join to member, to the first overlay ping |
| dht | 50 nodes of discovery on loopback, none and a third of them dead; the library beside them |
| simulation | discovery's own code on virtual time: churn, hostile members, growth with the mesh |
| gossip | 30 control planes on loopback, in a star and in a random graph |
| owner | agents in namespaces: the owner of a deployment is killed, again and again |
| idle | a mesh of 30 agents in namespaces, left alone: memory and CPU of each |
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dht
import gossip
from fleet import idle_rows, join_rows, owner_rows
from report import Row, conditions, finish, parser

# These need namespaces, so they run in a sandbox; the others measure better without one around.
SANDBOXED: dict[str, Callable[[bool], list[Row]]] = {
    "join": join_rows, "owner": owner_rows, "idle": idle_rows,
}  # fmt: skip
PLAIN: dict[str, Callable[[bool], list[Row]]] = {
    "dht": dht.rows, "simulation": dht.simulated_rows, "gossip": gossip.rows,
}  # fmt: skip
NEIGHBOURS = 8192
PARTS = ("join", "dht", "simulation", "gossip", "owner", "idle")


def main() -> int:
    """Parse flags, run each part in a process of its own, print one table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--only", action="append", choices=PARTS, help="just this part; repeatable")
    flags.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = flags.parse_args()
    if arguments.part:
        run = SANDBOXED | PLAIN
        save(run[arguments.part](arguments.quick), arguments.json)
        return 0
    rows: list[Row] = []
    with room_for_neighbours():
        for part in arguments.only or PARTS:
            rows += in_a_process(part, arguments.quick)
    finish("mesh", conditions(quick=arguments.quick), rows, arguments.json)
    return 0


@contextlib.contextmanager
def room_for_neighbours() -> Iterator[None]:
    """Let the kernel know more neighbours at once: it keeps one table for all namespaces.

    With 30 agents on one machine that each know the others it would throw out live entries, which
    30 machines never see. As ordinary user nothing is changed.
    """
    files = [Path(f"/proc/sys/net/{family}/neigh/default/gc_thresh{n}")
             for family in ("ipv4", "ipv6") for n in (3, 2, 1)]  # fmt: skip
    before: dict[Path, str] = {}
    try:
        for file in files:
            with contextlib.suppress(OSError):
                before[file] = file.read_text()
                file.write_text(str(max(int(before[file]), NEIGHBOURS)))
        yield
    finally:
        for file in reversed(files):
            if file in before:
                with contextlib.suppress(OSError):
                    file.write_text(before[file])


def save(rows: list[Row], file: Path) -> None:
    """Hand a part's rows to the process that asked for them."""
    file.write_text(json.dumps(rows))


def in_a_process(part: str, quick: bool) -> list[Row]:
    """Measure one part in a fresh process, so that no part sees what another left in memory."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--part", part, "--json", str(file)]
        command += ["--quick"] if quick else []
        print(f"== {part}", file=sys.stderr)
        inside = [sys.executable, "-m", "agent.demo.sandbox", "--"] if part in SANDBOXED else []
        began = time.monotonic()
        code = subprocess.run([*inside, *command], check=False).returncode
        if code != 0:
            raise SystemExit(f"the part {part} failed with exit code {code}")
        print(f"== {part} took {time.monotonic() - began:.0f} s", file=sys.stderr)
        rows: list[Row] = json.loads(file.read_text())
        return rows


if __name__ == "__main__":
    sys.exit(main())
