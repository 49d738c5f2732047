"""An hour of random kills, cuts and joins, with clients that check every answer.

    python tests/bench/chaos.py [--quick] [--minutes 60] [--seed N] [--json FILE] [--logs FOLDER]

Six workers and a gateway in network namespaces on one LAN; the bundled model over three of the
workers, four greedy streams at a time, each answer compared with that of the undisturbed ring.
Engines and agents are killed and stopped, machines cut off, drained and taken down; new ones join,
leave, or are gone for good. One event at a time is in the way of answers, until the deployment is
whole again or for a minute; every seventh comes upon another. Events are printed as they happen;
--logs keeps them, the agents' logs and the answers that were not right.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from chaoslab import events, leaks, tally
from chaoslab.answers import Seen
from chaoslab.events import Choice, Event
from chaoslab.mesh import STREAMS, WORKERS, Clients, Storm, Watch
from failoverlab.ringed import MODEL, NODES
from report import Row, conditions, finish, parser, row

from agent.demo import sandbox
from agent.errors import CoveyError

MINUTES, QUICK_MINUTES = 60.0, 2.0
MEAN_S, QUICK_MEAN_S = 25.0, 5.0
# Agents are as large as they get, but for leaks, at this age.
SETTLED_S, QUICK_SETTLED_S = 300.0, 30.0
STEADY_S = 3.0
PAUSE_LIMIT_S = 60.0
SECOND_SHARE = 0.15
END_LIMIT_S = 180.0
SAMPLE_S = 60.0
# What an agent may hold more: some links and their buffers, whatever the members do just then.
FILES_GOAL, RSS_GOAL_MIB = 16, 16


class Chaos:
    """One run: what happens, who sees it."""

    def __init__(
        self, root: Path, folder: Path, minutes: float, mean_s: float, seed: int,
        kinds: tuple[str, ...], log: TextIO,
    ) -> None:  # fmt: skip
        self.root, self.seed, self._folder, self._log = root, seed, folder, log
        self.minutes, self._mean_s = minutes, mean_s
        self._began = time.monotonic()
        self.say("the mesh comes up")
        self.mesh = Storm(root)
        self.mesh.serve()
        self.clients = Clients(self.mesh)
        self.holdings = leaks.Holdings(self.mesh)
        self.events: list[Event] = []
        self._chance = random.Random(seed)
        self._choice = Choice(self._chance, kinds)
        self._pool = ThreadPoolExecutor(16)
        self._sampled = 0.0

    def say(self, words: str) -> None:
        """Print a line, and log it, with the seconds since the beginning."""
        line = f"{time.monotonic() - self._began:8.1f}  {words}"
        print(line, file=sys.stderr, flush=True)
        print(line, file=self._log, flush=True)

    def run(self) -> list[Row]:
        """Do it all and return the rows."""
        works = self.clients.learn()
        self.say(f"{works} answers are known")
        calm = self.clients.undisturbed(2)
        rows = [
            row("answers known", works, "answers"),
            row("undisturbed: not as before", sum(s.end != "ok" for s in calm),
                f"of {len(calm)}", goal=0),
            row("undisturbed: longest gap", max(s.gap_s for s in calm), "s"),
        ]  # fmt: skip
        self.watch = Watch(self.mesh)
        self.clients.begin(self.seed)
        began = time.monotonic()
        try:
            self._storm(began + 60 * self.minutes)
            end_rows = self._calm()
        finally:
            self.watch.stop()
        rows += tally.rows(self.clients.seen, self.events, time.monotonic())
        return rows + end_rows

    def keep_logs(self) -> None:
        """Copy the logs, and write what is known of events, answers and what agents hold."""
        for file in [*self.root.glob("*.log"), *self.root.glob("*/agent.log")]:
            shutil.copyfile(file, self._folder / "-".join(file.relative_to(self.root).parts))
        told = [asdict(event) | {"roles": sorted(event.roles)} for event in self.events]
        held = {f"{name} {pid}": [asdict(one) for one in samples]
                for (name, pid), samples in self.holdings.samples.items()}  # fmt: skip
        (self._folder / "events.json").write_text(json.dumps(told, indent=1))
        (self._folder / "held.json").write_text(json.dumps(held, indent=1))
        seen = "".join(f"{one.line()}\n" for one in self.clients.seen)
        (self._folder / "seen.jsonl").write_text(seen)

    # ------------------------------------------------------------------ the storm

    def _storm(self, until: float) -> None:
        while True:
            self._wait(self._chance.expovariate(1 / self._mean_s))
            second = self._chance.random() < SECOND_SHARE
            kind = self._choice.draw()
            self._pause(kind, second=second)
            if time.monotonic() > until:
                return
            try:
                name = self._choice.target(self.mesh, kind)
                roles = {"other"} if kind == "newcomer joins" else self.mesh.roles(name)
            except (CoveyError, LookupError, StopIteration) as error:
                self.say(f"({kind}: not now, {error})")
                continue
            self._choice.joined += kind == "newcomer joins"
            event = Event(kind, name, roles, time.monotonic(), self._choice.lasts_s(kind))
            self.events.append(event)
            self.say(f"{kind}: {name} ({', '.join(sorted(roles))}) for {event.lasts_s:.1f} s"
                     + (", upon another" if second else ""))  # fmt: skip
            self._pool.submit(self._live, event)

    def _live(self, event: Event) -> None:
        events.live(self.mesh, event)
        said = event.error or event.words
        self.say(f"  over: {event.kind}: {event.name}" + (f": {said}" if said else ""))

    def _pause(self, kind: str, *, second: bool) -> None:
        """Wait until another event may come in the way of answers; with `second` one is there."""
        if events.KINDS[kind].role in ("other", "new"):
            return
        while sum(self._open(event) for event in self.events) > int(second):
            self._wait(0.25)

    def _open(self, event: Event) -> bool:
        """Say whether an event still counts as one in the way of answers."""
        if not event.serving or event.words:
            return False
        if time.monotonic() - event.began > max(PAUSE_LIMIT_S, event.lasts_s):
            return False
        return not (event.whole and event.answered)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            self._look()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.25))

    def _look(self) -> None:
        """Take in what the clients saw and how the ring is."""
        now = time.monotonic()
        for seen in self.clients.tail():
            self._note(seen)
        if not self.clients.alive():
            raise SystemExit("the clients ended by themselves")
        for event in self.events[-20:]:
            if not event.whole and (at := self.watch.whole_since(event.began, STEADY_S)):
                event.whole = at
                if event.serving:
                    self.say(f"  whole {at - event.began:.1f} s after {event.kind}")
        if now - self._sampled > SAMPLE_S:
            self._sampled = now
            self.holdings.sample(now)
            self.keep_logs()

    def _note(self, seen: Seen) -> None:
        if seen.end == "ok":
            for event in self.events[-20:]:
                if not event.answered and event.whole and seen.began >= event.whole:
                    event.answered = seen.ended
            return
        if seen.end == "refused":
            return  # hundreds, where there is no head; the logs have them
        self.say(f"  {seen.end}: {seen.status} {seen.error} (after {seen.ended - seen.began:.2f} s,"
                 f" {'a stream' if seen.streamed else 'whole'})")  # fmt: skip
        if seen.end not in ("denied", "lost"):
            print(json.dumps(asdict(seen)), file=self._log, flush=True)

    # ------------------------------------------------------------------ the calm after it

    def _calm(self) -> list[Row]:
        """Wait until all is whole; look for what was left."""
        self.say("no more events")
        until = time.monotonic() + END_LIMIT_S
        while any(not event.over for event in self.events) and time.monotonic() < until:
            self._wait(0.5)
        self._pool.shutdown(wait=True)
        began = time.monotonic()
        whole: float | None = None
        while whole is None and time.monotonic() < until:
            self._wait(0.5)
            whole = self.watch.whole_since(began, 2 * STEADY_S)
        self.say("whole" if whole else f"not whole: {self.watch.looks[-1].words}")
        self._wait(2 * STEADY_S)
        for seen in self.clients.end():
            self._note(seen)
        time.sleep(STEADY_S)
        self.holdings.sample(time.monotonic())
        strays = leaks.strays(self.mesh)
        working = self.mesh.engines_at_work()
        for stray in strays:
            self.say(f"astray: {stray}")
        self.mesh.stop()
        with ThreadPoolExecutor(4) as pool:
            for name, done in [(name, pool.submit(self.mesh.try_agent, name, "down"))
                               for name in self.mesh.machines]:  # fmt: skip
                if done.result().returncode != 0:
                    self.say(f"`agent down` on {name}: {done.result().stderr}")
        left = leaks.left_behind(self.mesh)
        for one in left:
            self.say(f"left behind: {one}")
        return [
            row("at the end: whole", int(whole is not None), "of 1", goal=1, higher=True),
            row("at the end: engines at work", working, "engines", goal=NODES),
            row("at the end: astray while up", len(strays), "things", goal=0,
                limit=strays[0] if strays else None),
            row("cut weights on one disk, most", leaks.weights(self.mesh), "MiB"),
            row("all down: left behind", len(left), "things", goal=0,
                limit=left[0] if left else None),
        ]  # fmt: skip


def growth_rows(holdings: leaks.Holdings, settled_s: float) -> list[Row]:
    """Return how much agents grew, from that age on to their last sample."""
    found = holdings.growths(settled_s)
    if not found:
        return []
    files = max(found, key=lambda one: one.files)
    rss = max(found, key=lambda one: one.rss)
    oldest = max(found, key=lambda one: one.over_s)
    over = {one: f"{one.name}, over {one.over_s / 60:.0f} min" for one in (files, rss, oldest)}
    return [
        row("agents that were looked at for long", len(found), "agents"),
        row("open files more, most", files.files, "files", goal=FILES_GOAL, limit=over[files]),
        row("memory (RSS) more, most", rss.rss, "MiB", goal=RSS_GOAL_MIB, limit=over[rss]),
        row("the oldest: open files more", oldest.files, "files", limit=over[oldest]),
        row("the oldest: memory (RSS) more", oldest.rss, "MiB", limit=over[oldest]),
        row("threads more, most", max(one.threads for one in found), "threads"),
    ]


def main() -> int:
    """Parse flags, run it in a sandbox, print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--minutes", type=float, metavar="N",
                       help=f"how long ({MINUTES:g}; quick: {QUICK_MINUTES:g})")  # fmt: skip
    flags.add_argument("--seed", type=int, default=1, metavar="N", help="another course of events")
    flags.add_argument("--logs", type=Path, metavar="FOLDER", help="keep all logs here")
    flags.add_argument("--only", nargs="+", choices=list(events.KINDS), metavar="KIND",
                       help="these kinds of events alone")  # fmt: skip
    arguments = flags.parse_args()
    if not sandbox.inside():
        return sandbox.run([sys.executable, *sys.argv])
    quick = arguments.quick
    minutes = arguments.minutes or (QUICK_MINUTES if quick else MINUTES)
    mean_s = QUICK_MEAN_S if quick else MEAN_S
    root = Path("/run/covey-chaos")
    root.mkdir()
    folder: Path = arguments.logs or root / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    chaos = None
    with (folder / "chaos.log").open("w") as log:
        try:
            kinds = tuple(arguments.only or events.KINDS)
            chaos = Chaos(root, folder, minutes, mean_s, arguments.seed, kinds, log)
            rows = chaos.run()
            rows += growth_rows(chaos.holdings, QUICK_SETTLED_S if quick else SETTLED_S)
        finally:
            if chaos is not None:
                chaos.mesh.stop()
                chaos.keep_logs()
    found = conditions(
        quick=quick, model=MODEL, workers=WORKERS, nodes=NODES, streams=STREAMS,
        seed=arguments.seed, minutes=minutes, mean_s_between_events=mean_s,
        events=len(chaos.events), threads_per_engine=1,
    )  # fmt: skip
    finish("chaos", found, rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
