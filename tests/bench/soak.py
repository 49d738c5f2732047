"""An hour of steady work while nodes come and go: what every process holds stays flat.

    python tests/bench/soak.py [--quick] [--minutes 60] [--json FILE] [--logs FOLDER]

Three workers and a gateway in network namespaces on one LAN; the bundled model over all three;
eight greedy streams at a time through the gateway, each answer compared with that of the
undisturbed ring. Two more machines join and leave in turn. Memory (RSS), open files and threads of
each agent, engine, wireguard-go and the gateway are sampled; after the warm-up, the trend of each
(`soaklab/trend.py`) has to come to less than a bound over the whole run, and every answer has to be
whole and right.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from chaoslab import leaks
from chaoslab.answers import ENDS, Seen
from chaoslab.events import KINDS as EVENTS
from chaoslab.mesh import Clients, Storm
from failoverlab.ringed import MODEL
from report import Row, conditions, finish, parser, percentiles, row
from soaklab.holdings import KINDS, Holdings
from soaklab.trend import Trend

from agent.demo import sandbox

WORKERS, STREAMS = 3, 8
MINUTES, QUICK_MINUTES = 60.0, 2.0
# Python's and llama.cpp's heaps are as large as they get after some minutes of this work.
WARM_UP_S, QUICK_WARM_UP_S = 600.0, 30.0
SAMPLE_S, QUICK_SAMPLE_S = 20.0, 3.0
# A newcomer stays, and then nobody does, for so long.
STAYS_S, QUICK_STAYS_S = 45.0, 10.0
COMERS = ("x0", "x1")
# By the trend, at the end of an hour: a leak of a KiB for each of its requests would be 5 MiB. The
# quick form looks on while heaps still grow to their size.
RSS_GOAL_MIB, QUICK_RSS_GOAL_MIB, FILES_GOAL = 4.0, 16.0, 2.0


class Soak:
    """One run."""

    def __init__(self, root: Path, *, quick: bool, minutes: float, folder: Path) -> None:
        self._folder = folder
        self._minutes = minutes
        self._warm_up_s = QUICK_WARM_UP_S if quick else WARM_UP_S
        self._sample_s = QUICK_SAMPLE_S if quick else SAMPLE_S
        self._rss_goal_mib = QUICK_RSS_GOAL_MIB if quick else RSS_GOAL_MIB
        self._stays_s = QUICK_STAYS_S if quick else STAYS_S
        self._began = time.monotonic()
        self.say("the mesh comes up")
        self.mesh = Storm(root, WORKERS)
        self.mesh.serve()
        for name in COMERS:
            self.mesh.lab.add(name)
        self.clients = Clients(self.mesh, STREAMS)
        self.holdings = Holdings(self.mesh)
        self._sampled = 0.0
        self.joined = self.left = 0

    def say(self, words: str) -> None:
        """Print a line with the seconds since the beginning."""
        print(f"{time.monotonic() - self._began:8.1f}  {words}", file=sys.stderr, flush=True)

    def run(self) -> list[Row]:
        """Do it all and return the rows."""
        self.say(f"{self.clients.learn()} answers are known")
        self.clients.begin(1)
        began = time.monotonic()
        warm, until = began + self._warm_up_s, began + self._warm_up_s + 60 * self._minutes
        turn = 0
        while time.monotonic() < until:
            name = COMERS[turn % len(COMERS)]
            EVENTS["newcomer joins"].act(self.mesh, name)
            self.joined += 1
            self._wait(self._stays_s)
            EVENTS["newcomer leaves"].act(self.mesh, name)
            self.left += 1
            self._wait(self._stays_s)
            turn += 1
        for seen in self.clients.end():
            self._note(seen)
        self.holdings.sample(time.monotonic())
        self.holdings.write(self._folder / "held.json")
        strays = leaks.strays(self.mesh)
        for stray in strays:
            self.say(f"astray: {stray}")
        return [
            *self._answers(warm),
            row("joins and leaves", self.joined + self.left, "of nodes"),
            *self._held(warm),
            row("at the end: astray", len(strays), "things", goal=0),
        ]

    # ------------------------------------------------------------------ what is seen

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            now = time.monotonic()
            for seen in self.clients.tail():
                self._note(seen)
            if not self.clients.alive():
                raise SystemExit("the clients ended by themselves")
            if now - self._sampled >= self._sample_s:
                self._sampled = now
                self.holdings.sample(now)
            time.sleep(0.25)

    def _note(self, seen: Seen) -> None:
        if seen.end != "ok":
            self.say(f"{seen.end}: {seen.status} {seen.error}")

    def _answers(self, warm: float) -> list[Row]:
        seen = self.clients.seen
        gaps = percentiles([one.gap_s for one in seen if one.streamed and one.end == "ok"] or [0.0])
        since = [one for one in seen if one.end == "ok" and one.began >= warm]
        span_s = max(one.ended for one in since) - warm if since else 1.0
        bad = {end: sum(one.end == end for one in seen) for end in ENDS if end != "ok"}
        return [
            row("answers", len(seen), "answers"),
            row("answers a minute, after the warm-up", 60 * len(since) / span_s, "answers"),
            *(row(f"answers that were {end}", count, "answers", goal=0)
              for end, count in bad.items()),
            row("pause in a stream, p95", gaps[1], "s"),
        ]  # fmt: skip

    def _held(self, warm: float) -> list[Row]:
        found = []
        over_s = 0.75 * 60 * self._minutes
        for kind in KINDS:
            rss = self.holdings.trends(kind, lambda one: one.rss, warm, over_s)
            files = self.holdings.trends(kind, lambda one: float(one.files), warm, over_s)
            threads = self.holdings.trends(kind, lambda one: float(one.threads), warm, over_s)
            found += [
                row(f"{kind}: memory (RSS) at most", self.holdings.last(kind, _rss), "MiB"),
                _risen(f"{kind}: memory more by its trend, most", rss, "MiB", self._rss_goal_mib),
                _risen(f"{kind}: open files more, most", files, "files", FILES_GOAL),
                _risen(f"{kind}: threads more, most", threads, "threads", FILES_GOAL),
            ]
        return found


def _rss(held: leaks.Held) -> float:
    return held.rss


def _risen(name: str, trends: Mapping[str, Trend], unit: str, goal: float) -> Row:
    """Return the row of the process that rose most."""
    if not trends:
        return row(name, 0.0, unit, limit="no process of it was there long enough")
    most = max(trends, key=lambda key: trends[key].rise)
    over = f"{most}, over {trends[most].over_s / 60:.0f} min; {len(trends)} were looked at"
    return row(name, trends[most].rise, unit, goal=goal, limit=over)


def main() -> int:
    """Parse flags, run it in a sandbox, print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument(
        "--minutes", type=float, metavar="N",
        help=f"after the warm-up ({MINUTES:g}; quick: {QUICK_MINUTES:g})",
    )  # fmt: skip
    flags.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the samples here")
    arguments = flags.parse_args()
    if not sandbox.inside():
        return sandbox.run([sys.executable, *sys.argv])
    minutes = arguments.minutes or (QUICK_MINUTES if arguments.quick else MINUTES)
    root = Path("/run/covey-soak")
    root.mkdir()
    folder: Path = arguments.logs or root
    folder.mkdir(parents=True, exist_ok=True)
    soak = Soak(root, quick=arguments.quick, minutes=minutes, folder=folder)
    try:
        rows = soak.run()
    finally:
        soak.mesh.stop()
    found = conditions(
        quick=arguments.quick, model=MODEL, workers=WORKERS, streams=STREAMS, minutes=minutes,
        warm_up_s=QUICK_WARM_UP_S if arguments.quick else WARM_UP_S, threads_per_engine=1,
    )  # fmt: skip
    finish("soak", found, rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
