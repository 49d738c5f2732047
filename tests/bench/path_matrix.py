"""The path engine on the simulated network: how long until a packet came back, until it was direct.

    python tests/bench/path_matrix.py [--quick] [--seeds N] [--json FILE]

Every kind of network against every other, by seed, on three kinds of links: good, bad (each link,
of which a relayed packet crosses four, loses a tenth, delays a tenth, doubles some; a fifth of
signals is lost) and very bad (a fifth lost).
Virtual time: it shows what the rules do, not what a kernel does. The same seeds check that an
endpoint is only set to a place that answered or to a relay, and that output stays bounded.
WireGuard's handshakes are modelled, which it repeats after 5 s only; a handshake that crosses the
peer's comes to nothing. Whether the node that starts has the lower id goes by seed as well.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path

import report

sys.path.insert(0, str(Path(__file__).parents[1]))
from unit.paths.network import World
from unit.paths.scenario import KINDS, LAN, Duet, check

PAIRS = [(a, b) for a in KINDS for b in (*KINDS, LAN)]
LINKS = {
    "good": {},
    "bad": {"loss": 0.1, "reorder": 0.1, "double": 0.05, "signal_loss": 0.2},
    "very bad": {"loss": 0.2, "reorder": 0.1, "double": 0.05, "signal_loss": 0.2},
}
NEVER_S = 99.0


def group(a: str, b: str) -> str:
    """Return the row that a pair counts for."""
    if b == LAN:
        return "one LAN"
    if "blocked" in (a, b):
        return "UDP blocked"
    if (a, b) == ("hard", "hard"):
        return "hard/hard"
    if "hard" in (a, b) and {a, b} & {"easy", "double"}:
        return "easy/hard"
    if {a, b} & {"public", "mapped"}:
        return "public"
    return "easy/easy"


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=None, help="in all; 10000, quick 1000")
    args = parser.parse_args()
    seeds = args.seeds or (1000 if args.quick else 10_000)
    first: dict[tuple[str, str], list[float]] = defaultdict(list)
    direct: dict[tuple[str, str], list[float]] = defaultdict(list)
    begin, broken = time.monotonic(), 0
    for seed in range(seeds):
        a, b = PAIRS[seed % len(PAIRS)]
        links = list(LINKS)[seed // len(PAIRS) % len(LINKS)]
        world = World(seed, handshakes=True, **LINKS[links])
        order = seed // len(PAIRS) // len(LINKS)
        duet = Duet(world, a, b, starts_b=order % 2 == 1, leads=order // 2 % 2 == 1)
        duet.settle()
        duet.start()
        found = duet.measure(for_s=15.0, first_s=10.0)
        try:
            check(duet.starter, duet.other)
        except AssertionError as error:
            broken += 1
            print(f"seed {seed} ({a}, {b}, {links}): {error}")
        key = (links, group(a, b))
        first[key].append(NEVER_S if found.first_s is None else found.first_s)
        direct[key].append(NEVER_S if found.direct_s is None else found.direct_s)
    rows = [report.row("seeds that broke a rule", broken, "of them", goal=0)]
    for key in sorted(first):
        links, name = key
        p50, p95 = report.percentiles(first[key])
        late = sum(at > 2.0 for at in first[key])
        label = f"{links}, {name}"
        rows.append(report.row(f"{label}: first packet p50", p50, "s"))
        rows.append(report.row(f"{label}: first packet p95", p95, "s", goal=2.0))
        rows.append(report.row(f"{label}: over 2 s", late, f"of {len(first[key])}"))
        if name not in ("UDP blocked", "hard/hard"):
            p50, p95 = report.percentiles(direct[key])
            goal = (6.0 if name == "easy/hard" else 1.0) if links == "good" else None
            never = sum(at >= NEVER_S for at in direct[key])
            rows.append(report.row(f"{label}: direct p50", p50, "s"))
            rows.append(report.row(f"{label}: direct p95", p95, "s", goal=goal))
            rows.append(report.row(f"{label}: not direct in 15 s", never, f"of {len(direct[key])}"))
    took = round(time.monotonic() - begin, 1)
    report.finish("path_matrix", report.conditions(seeds=seeds, took_s=took), rows, args.json)


if __name__ == "__main__":
    main()
