"""10,000 connections that are of no use to anyone, and how a gateway serves others meanwhile.

    python tests/bench/connections.py [--quick] [--json FILE]

The real `gateway serve` on one core; clients and replica, in this process, have another. Seven
kinds come at once (connectionslab/crowd.py): connections that say nothing, heads that come a byte
at a time, bodies that do not come, readers of an endless stream who read 2 KiB/s, and connections
that are reset while they ask, wait and are answered. An ordinary client asks all the time, each
time on a new connection. The gateway's own bounds, short here, end the first three kinds. Then all
is counted: files, requests, connections to the replica, and memory, after one such wave and after
another.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path

from connectionslab.crowd import KINDS
from connectionslab.replica import Replica
from connectionslab.wave import ORDINARY_EACH_S, Seen, config, wave
from gatewaylab import contenders
from report import Row, conditions, finish, parser, row

from gateway.process import TRIM_EACH_S, raise_file_limit

CONNECTIONS, QUICK_CONNECTIONS = 10_000, 2_000
BOUND_S, QUICK_BOUND_S = 20.0, 3.0
WAVES = 2
# A reader of a stream is two connections and a request; the others are little more than a file.
SLOW_SHARE = 0.1
GROWTH_GOAL_MIB = 8.0
SETTLE_S = 5.0


def counts(total: int) -> dict[str, int]:
    """Return how many there are of each kind."""
    slow = int(total * SLOW_SHARE)
    others = [kind for kind in KINDS if kind != "slow"]
    each = (total - slow) // len(others)
    return dict.fromkeys(others, each) | {"slow": total - each * len(others)}


async def waves(core: int, total: int, bound_s: float, folder: Path, settle_s: float) -> list[Seen]:
    """Return what the waves were like."""
    replica = Replica()
    await replica.start()
    port = contenders.free_port()
    file = config(folder, replica.port, bound_s, total)
    command = [sys.executable, "-m", "gateway", "serve", "--listen", f"127.0.0.1:{port}",
               "--config", str(file)]  # fmt: skip
    process = contenders.Process("Covey", command, core, folder)
    try:
        await asyncio.to_thread(process.wait_for, lambda: contenders.answers(port, "/health"))
        each = counts(total)
        return [await wave(process, port, replica, each, settle_s) for _ in range(WAVES)]
    finally:
        process.stop()
        replica.stop()


def rows(found: list[Seen]) -> list[Row]:
    """Return the rows of the report."""
    ordinary = sorted(second for seen in found for second in seen.ordinary_s)
    failed = [words for seen in found for words in seen.failed]
    left = [seen.left for seen in found if seen.left]
    growth = found[-1].rss_mib - found[0].rss_mib
    return [
        row("connections in each wave", found[0].connections, ""),
        row("of them open at once, with those to the replica",
            max(seen.files_most for seen in found), ""),
        row("ordinary requests meanwhile", len(ordinary), ""),
        row("of them not served", len(failed), "", goal=0, limit=failed[0] if failed else None),
        row("ordinary request, p50", 1000 * statistics.median(ordinary), "ms"),
        row("ordinary request, p99", 1000 * ordinary[int(0.99 * len(ordinary))], "ms"),
        row("all freed after the last has left", max(seen.freed_s for seen in found), "s",
            limit="; ".join(left) or None),
        row("waves after which something was left", len(left), "", goal=0),
        row("memory (RSS) while they are there", max(seen.rss_most_mib for seen in found), "MiB"),
        row("memory (RSS) after the first wave", found[0].rss_mib, "MiB"),
        row("memory more after the second", growth, "MiB", goal=GROWTH_GOAL_MIB),
    ]  # fmt: skip


def main() -> int:
    """Parse flags, measure, print a table and write JSON."""
    arguments = parser(__doc__).parse_args()
    total = QUICK_CONNECTIONS if arguments.quick else CONNECTIONS
    bound_s = QUICK_BOUND_S if arguments.quick else BOUND_S
    files = raise_file_limit()
    if files < 2 * total:
        print(f"Only {files} files may be open here: ulimit -Hn {2 * total}", file=sys.stderr)
        return 1
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as folder:
        found = asyncio.run(waves(cores[0], total, bound_s, Path(folder), TRIM_EACH_S + SETTLE_S))
    os.sched_setaffinity(0, cores)
    more = {"waves": WAVES, "bound_s": bound_s, "ordinary_each_s": ORDINARY_EACH_S,
            "core_of_gateway": cores[0], "core_of_the_rest": cores[-1], "files": files}  # fmt: skip
    finish("connections", conditions(quick=arguments.quick, **more), rows(found), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
