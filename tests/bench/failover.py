"""What clients see when a part of the mesh dies under eight streams.

    python tests/bench/failover.py [--quick] [--json FILE] [--times N] [--only FAULT …]

Four workers and a gateway in network namespaces on one LAN; the bundled model over three nodes,
its weights on every disk, eight greedy streams through the gateway. In the middle of them a stage's
or the head's engine is killed or stopped (SIGSTOP), or its machine's network is cut; the same with
the agents of the owner, where that is not the head's, and of the gateway (whose network comes back
after two seconds). Each stream's text is compared with that of an undisturbed run. What was lost is
put right again before the next time.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from failoverlab.faults import FAULTS
from failoverlab.ringed import PORT, Ringed
from report import Row, conditions, finish, parser, row

from agent.demo import sandbox
from agent.models import bundled

STREAMS = 8
# The bundled model's context is 1,024 tokens, which the eight share.
TOKENS = 100
CLIENT = Path(__file__).parent / "failoverlab" / "streams.py"
# Where a stage is lost no request may be; a head's own death is another matter.
LOST_GOAL = {kind: 0 for kind in FAULTS if not kind.startswith("head")}
# Streams wait for a network that is away, and for TCP's next repetition after that.
GAP_GOAL_S = 3.0
_NO_GAP_GOAL = ("head", "gateway cut off")


@dataclass
class Seen:
    """What the clients saw of one kind of fault."""

    lost: int = 0
    same: int = 0
    others: int = 0
    gaps: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, found: list[dict[str, Any]], expected: list[str]) -> None:
        """Take the streams of one time."""
        for stream, text in zip(found, expected, strict=True):
            if stream["end"] != "length":
                self.lost += 1
                self.errors.append(stream["error"] or "the stream was cut without a word")
                continue
            self.gaps.append(stream["gap_s"])
            self.same += stream["text"] == text
            self.others += stream["text"] != text


def ask(mesh: Ringed) -> subprocess.Popen[str]:
    """Start the client; returns once every stream has begun."""
    command = [sys.executable, str(CLIENT), f"http://127.0.0.1:{PORT}", mesh.served, str(STREAMS),
               str(TOKENS)]  # fmt: skip
    client = subprocess.Popen(
        mesh.machine(mesh.door).command(command), stdout=subprocess.PIPE, text=True,
        env=mesh.environment(mesh.door),
    )  # fmt: skip
    if client.stdout is None or client.stdout.readline().strip() != "begun":
        raise SystemExit("the client could not begin")
    return client


def ended(client: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Return what the client saw."""
    found: list[dict[str, Any]] = json.loads(client.communicate(timeout=300)[0])
    return found


def measure(times: int, kinds: list[str]) -> list[Row]:
    """Do everything so many times and return the rows."""
    mesh = Ringed(Path("/run/covey-failover"))
    mesh.serve()
    chance = random.Random(1)
    rows: list[Row] = []
    try:
        expected = [stream["text"] for stream in ended(ask(mesh))]
        began = time.monotonic()
        undisturbed = ended(ask(mesh))
        whole_s = time.monotonic() - began
        rows.append(row("undisturbed: longest gap", max(s["gap_s"] for s in undisturbed), "s"))
        rows.append(row("undisturbed: same text again",
                        sum(s["text"] == t for s, t in zip(undisturbed, expected, strict=True)),
                        f"of {STREAMS}"))  # fmt: skip
        for kind in kinds:
            seen = Seen()
            if kind.startswith("owner"):
                mesh.owned_elsewhere()
            for _ in range(times):
                client = ask(mesh)
                time.sleep(chance.uniform(0.05, 0.5) * whole_s)
                try:
                    undo = FAULTS[kind](mesh)
                except LookupError as error:
                    print(f"  {kind}: not this time, {error}", file=sys.stderr)
                    ended(client)
                    continue
                seen.add(ended(client), expected)
                undo()
                mesh.whole_again()
                print(f"  {kind}: {len(seen.gaps)} went on, {seen.lost} lost, longest gap"
                      f" {max(seen.gaps, default=0.0):.2f} s", file=sys.stderr)  # fmt: skip
            rows += of_kind(kind, seen)
    finally:
        mesh.stop()
    return rows


def of_kind(kind: str, seen: Seen) -> list[Row]:
    """Return the rows of one kind of fault."""
    asked = seen.lost + seen.same + seen.others
    words = max(set(seen.errors), key=seen.errors.count) if seen.errors else None
    rows = [row(f"{kind}: requests lost", seen.lost, f"of {asked}", goal=LOST_GOAL.get(kind),
                limit=words)]  # fmt: skip
    if seen.gaps:
        goal = None if kind.startswith(_NO_GAP_GOAL) else GAP_GOAL_S
        rows.append(row(f"{kind}: longest gap", max(seen.gaps), "s", goal=goal))
        rows.append(row(f"{kind}: same text as undisturbed", seen.same,
                        f"of {seen.same + seen.others}", goal=seen.same + seen.others,
                        higher=True))  # fmt: skip
    return rows


def main() -> int:
    """Parse flags, measure in a sandbox, print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--times", type=int, metavar="N", help="how often each (20; quick: 1)")
    flags.add_argument("--only", nargs="+", choices=sorted(FAULTS), metavar="FAULT")
    arguments = flags.parse_args()
    if not sandbox.inside():
        return sandbox.run([sys.executable, *sys.argv])
    times = arguments.times or (1 if arguments.quick else 20)
    rows = measure(times, arguments.only or list(FAULTS))
    found = conditions(
        quick=arguments.quick, model=bundled.NAME, nodes=3, streams=STREAMS, tokens=TOKENS,
        times=times, threads_per_engine=1,
    )  # fmt: skip
    finish("failover", found, rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
