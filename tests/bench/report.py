"""What every bench writes: rows with goals and peers, the conditions, a table, and JSON.

row(name, value, unit, goal=…, peer=…)  →  one figure
finish("mesh", conditions(…), rows, file)  →  the table on stdout, the JSON in the file
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# A bench beside this file is called gateway, and so is the package that some of them measure.
sys.path.insert(0, str(Path(__file__).parents[2]))

Row = dict[str, Any]


def row(
    name: str, value: float, unit: str, *, goal: float | None = None, higher: bool = False,
    peer: float | None = None, limit: str | None = None,
) -> Row:  # fmt: skip
    """Return one figure; `goal` is met at or below it, with `higher` at or above it.

    `peer` is what the same job took another program in the same run, `limit` what this figure
    cannot show.
    """
    met = None if goal is None else (value >= goal if higher else value <= goal)
    return {"name": name, "value": round(value, 4), "unit": unit, "goal": goal, "met": met,
            "peer": None if peer is None else round(peer, 4), "limit": limit}  # fmt: skip


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the 50th and the 95th percentile."""
    if len(values) == 1:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return statistics.median(values), cuts[94]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the two flags of every bench."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="fewer repeats; under 5 minutes")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    return made


def conditions(**more: object) -> dict[str, object]:
    """Return what a figure depends on: the machine, the commit, and what the bench adds."""
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
        "load_at_end": round(os.getloadavg()[0], 2), "commit": commit, **more,
    }  # fmt: skip


def finish(bench: str, found: Mapping[str, object], rows: Sequence[Row], file: Path | None) -> None:
    """Print the conditions and the table; write the JSON when a file is named."""
    for key, value in found.items():
        print(f"{key:>20}  {value}")
    width = max(len(r["name"]) for r in rows)
    print(f"\n{'':<{width}} {'Covey':>10} {'peer':>10} {'goal':>10}  unit")
    for r in rows:
        peer, goal = (("" if r[k] is None else f"{r[k]:g}") for k in ("peer", "goal"))
        verdict = "" if r["met"] is None else "  met" if r["met"] else "  MISSED"
        print(f"{r['name']:<{width}} {r['value']:>10g} {peer:>10} {goal:>10}  {r['unit']}{verdict}")
    if file:
        result = {"bench": bench, "conditions": found, "rows": list(rows)}
        file.write_text(json.dumps(result, indent=2) + "\n")
