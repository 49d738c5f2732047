"""The mesh of `chaos.py` and `soak.py`, its clients, and whoever looks on: is the deployment whole?

Only works inside a sandbox.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from failoverlab.ringed import MODEL, NODES, PORT, Ringed

from agent.demo.fleet import engines
from agent.errors import CoveyError, PeerError
from chaoslab.answers import LIMIT_S, Seen

WORKERS = 6
STREAMS = 4
CLIENTS = Path(__file__).parent / "clients.py"
_LOOK_S = 0.25
_ASIDE_S = 5.0
# A hundred short answers: seconds, but on a machine that is as good as taken by others.
_PREPARE_LIMIT_S = 900.0


class Storm(Ringed):
    """Workers, a gateway, newcomers; who is hit, and where an engine stands still."""

    def __init__(self, root: Path, workers: int = WORKERS) -> None:
        super().__init__(root, workers)
        # Its agent is never ended, so that one has seen the whole run.
        self.kept = self.workers[1]
        self.newcomers: dict[str, float] = {}
        self.hit: set[str] = set()
        self.draining: set[str] = set()
        self.frozen: set[int] = set()

    @property
    def machines(self) -> list[str]:
        """All machines whose agents are members now."""
        return [*self.workers, *self.newcomers, self.door]

    def aside(self, name: str) -> None:
        """Ask a machine no more how the ring is, and count it as no part of a whole one."""
        self.away.add(name)
        self.hit.add(name)

    def back(self, name: str) -> None:
        """Count a machine again; it is asked a little later, once it has heard the others."""
        self.hit.discard(name)
        threading.Timer(_ASIDE_S, self.away.discard, [name]).start()

    def roles(self, name: str) -> set[str]:
        """Return what a machine is now: head, stage, owner, other, gateway."""
        if name == self.door:
            return {"gateway"}
        found = self.deployment()
        nodes = {stage["name"] for stage in found["stages"]} - {found["head_name"]}
        roles = {"stage"} if name in nodes else set()
        roles |= {"head"} if name == found["head_name"] else set()
        roles |= {"owner"} if name == found["owner_name"] else set()
        return roles or {"other"}

    def stands_still(self) -> bool:
        """Say whether an engine that was stopped is there still, and stopped."""
        return any(Path(f"/proc/{pid}").exists() for pid in list(self.frozen))

    def agents(self) -> dict[str, int]:
        """Return the process ids of all agents that answer, by their machines' names."""
        found = {}
        for name in self.machines:
            with suppress(CoveyError, OSError):
                found[name] = int(self.status(name)["pid"])
        return found

    def engines_at_work(self) -> int:
        """Return how many engines have a model, on all machines."""
        return sum(len(engines(pid)) for pid in self.agents().values())


@dataclass(frozen=True)
class Look:
    """How the deployment was at a moment: whole (all nodes there, none hit), and which ring."""

    at: float
    whole: bool
    ring: tuple[str, int, frozenset[str]]
    words: str


class Watch:
    """Looks at the deployment four times a second."""

    def __init__(self, mesh: Storm) -> None:
        self._mesh = mesh
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)
        self.looks: list[Look] = []
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ends.set()
        self._thread.join()

    def whole_since(self, moment: float, steady_s: float) -> float | None:
        """Return when the same whole ring began that was there for so long, after a moment."""
        start: Look | None = None
        for look in self.looks[bisect_left(self.looks, moment, key=lambda look: look.at) :]:
            if not look.whole:
                start = None
            elif start is None or start.ring != look.ring:
                start = look
            if start is not None and look.at - start.at >= steady_s:
                return start.at
        return None

    def _follow(self) -> None:
        while not self._ends.wait(_LOOK_S):
            self.looks.append(self._look())

    def _look(self) -> Look:
        mesh, at = self._mesh, time.monotonic()
        try:
            found = mesh.deployment()
        except (CoveyError, LookupError, StopIteration, OSError, RuntimeError) as error:
            return Look(at, False, ("", 0, frozenset()), f"cannot be asked: {error!r}")
        nodes = frozenset(stage["name"] for stage in found["stages"])
        lacking = nodes & (mesh.hit | mesh.draining)
        whole = found["phase"] == "ready" and len(nodes) == NODES and not lacking
        whole = whole and not mesh.stands_still()
        words = f"{found['phase']} on {sorted(nodes)}: {found['progress']} {found['error'] or ''}"
        return Look(at, whole, (found["ring"], found["epoch"], nodes), words)


class Clients:
    """The clients' process on the gateway's machine, and what it has written so far."""

    def __init__(self, mesh: Storm, streams: int = STREAMS) -> None:
        self._mesh = mesh
        self._streams = streams
        self._works = mesh.root / "works.json"
        self._results = mesh.root / "results"
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0
        self.seen: list[Seen] = []

    def learn(self) -> int:
        """Learn the answers of an undisturbed ring; returns how many."""
        done = self._mesh.machine(self._mesh.door).run(
            self._command("learn"),
            env=self._mesh.environment(self._mesh.door),
            timeout_s=_PREPARE_LIMIT_S,
        )
        if done.returncode != 0:
            raise PeerError(f"the clients could not learn the answers: {done.stderr[-2000:]}")
        return len(json.loads(self._works.read_text()))

    def undisturbed(self, rounds: int) -> list[Seen]:
        """Ask everything so often while nothing happens, and return what came."""
        self.begin(0, rounds)
        self._wait(_PREPARE_LIMIT_S)
        self.tail()
        found, self.seen = self.seen, []
        return found

    def begin(self, seed: int, rounds: int = 0) -> None:
        """Start asking."""
        with (self._mesh.root / "clients.log").open("ab") as log:
            self._process = self._mesh.machine(self._mesh.door).spawn(
                [*self._command("ask"), str(self._results), str(self._streams), str(seed),
                 str(rounds)],
                env=self._mesh.environment(self._mesh.door), output=log,
            )  # fmt: skip

    def end(self) -> list[Seen]:
        """Have the last answers come, end, and return what is new."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._wait(2 * LIMIT_S)
        return self.tail()

    def alive(self) -> bool:
        """Say whether they still ask."""
        return self._process is not None and self._process.poll() is None

    def tail(self) -> list[Seen]:
        """Return what is new."""
        if not self._results.exists():
            return []
        with self._results.open("rb") as file:
            file.seek(self._read)
            raw = file.read()
        whole = raw[: raw.rfind(b"\n") + 1]
        self._read += len(whole)
        new = [Seen.parse(line.decode()) for line in whole.splitlines()]
        self.seen += new
        return new

    def _wait(self, limit_s: float) -> None:
        if self._process is None:
            return
        code = self._process.wait(timeout=limit_s)
        if code != 0:
            log = (self._mesh.root / "clients.log").read_text()[-2000:]
            raise PeerError(f"the clients ended with code {code}: {log}")

    def _command(self, what: str) -> list[str]:
        return [sys.executable, str(CLIENTS), what, f"http://127.0.0.1:{PORT}", MODEL,
                str(self._works)]  # fmt: skip
