"""What happens in `chaos.py`: kinds of events, whom each may hit, and one event's life.

An event is done to a machine, lasts a while, and is put right; each has a thread of its own.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from failoverlab import faults

from agent.errors import CoveyError
from chaoslab.mesh import Storm

Undo = Callable[[], None]
# So many of the six workers may be hit or draining at once: a ring of three and one more are left.
MOST_HIT = 2
MOST_NEWCOMERS = 6
# A newcomer is left alone for so long: it joins, measures, and may get work.
NEWCOMER_S = 20.0
_DRAIN_LIMIT_S = 180.0
# What could not be put right is tried once more, so that the rest of the run is worth something.
_AGAIN_S = 15.0


@dataclass
class Event:
    """One event: times are monotonic seconds, 0 where it did not come to that."""

    kind: str
    name: str
    roles: set[str]
    began: float
    lasts_s: float
    over: float = 0.0
    whole: float = 0.0
    answered: float = 0.0
    words: str = ""
    error: str = ""

    @property
    def serving(self) -> bool:
        """Whether it is one in the way of answers."""
        return self.roles != {"other"}

    @property
    def again(self) -> float:
        """When all was well again; a ring does not notice that the gateway is without an agent."""
        return self.answered if "gateway" in self.roles else self.whole

    @property
    def may_lose(self) -> bool:
        """Whether answers may be lost by design: those of a head, and all of a lost gateway."""
        return bool(self.roles & {"head", "gateway"}) and not self.kind.endswith("drained")


@dataclass(frozen=True)
class Kind:
    """`role`: of the machine that is chosen; `away`: it cannot be reached meanwhile."""

    role: str
    act: Callable[[Storm, str], Undo]
    lasts_s: tuple[float, float] = (0.0, 0.0)
    away: bool = False
    ends_agent: bool = False


def _frozen(mesh: Storm, name: str) -> Undo:
    pid = mesh.engine(name)
    thaw = faults.freeze(pid)
    mesh.frozen.add(pid)

    def undo() -> None:
        thaw()
        mesh.frozen.discard(pid)

    return undo


def _down(mesh: Storm, name: str) -> Undo:
    mesh.agent(name, "down")
    return lambda: faults.start(mesh, name)


def _drained(mesh: Storm, name: str) -> Undo:
    mesh.draining.add(name)

    def off() -> None:
        mesh.agent(name, "drain", "--off")
        mesh.draining.discard(name)

    try:
        done = mesh.try_agent(name, "drain", timeout_s=_DRAIN_LIMIT_S)
    except subprocess.TimeoutExpired:
        off()
        raise
    if done.returncode != 0:
        off()
        raise LookupError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return off


def _joins(mesh: Storm, name: str) -> Undo:
    if name not in mesh.lab.machines:  # one that left may come again
        mesh.lab.add(name)
    mesh.agent(name, "join", mesh.ticket())
    mesh.newcomers[name] = time.monotonic()
    return lambda: None


def _leaves(mesh: Storm, name: str) -> Undo:
    mesh.agent(name, "leave")
    del mesh.newcomers[name]
    return lambda: None


def _gone(mesh: Storm, name: str) -> Undo:
    mesh.kill(name)
    del mesh.newcomers[name]
    return lambda: None


_SHORT, _LONG = (2.0, 10.0), (2.0, 30.0)
KINDS: dict[str, Kind] = {
    "stage's engine killed": Kind("stage", faults.kill_engine),
    "stage's engine frozen": Kind("stage", _frozen, (2.0, 20.0)),
    "head's engine killed": Kind("head", faults.kill_engine),
    "head's engine frozen": Kind("head", _frozen, (2.0, 20.0)),
    # Longer than its agent waits for a head that stands still (agent/engine/supervisor.py).
    "head's engine frozen for long": Kind("head", _frozen, (90.0, 100.0)),
    "stage's agent killed": Kind("stage", faults.kill_agent, _SHORT, True, True),
    "stage's power lost": Kind("stage", faults.fail_power, _LONG, True, True),
    "owner's agent killed": Kind("owner", faults.kill_agent, _SHORT, True, True),
    # Longer than what a gateway waits for a machine that may be gone (gateway/sockets.py).
    "head's power lost": Kind("head", faults.fail_power, (25.0, 60.0), True, True),
    "head's agent killed": Kind("head", faults.kill_agent, _SHORT, True, True),
    "another's agent killed": Kind("other", faults.kill_agent, _SHORT, True, True),
    "another's power lost": Kind("other", faults.fail_power, _LONG, True, True),
    "gateway's agent killed": Kind("gateway", faults.kill_agent, (1.0, 5.0), False, True),
    "stage cut off": Kind("stage", faults.cut, _LONG, True),
    "head cut off": Kind("head", faults.cut, _LONG, True),
    "another cut off": Kind("other", faults.cut, _LONG, True),
    "stage's agent down": Kind("stage", _down, _LONG, True, True),
    "another's agent down": Kind("other", _down, _LONG, True, True),
    "stage drained": Kind("stage", _drained, _LONG),
    "head drained": Kind("head", _drained, _LONG),
    "newcomer joins": Kind("new", _joins),
    "newcomer leaves": Kind("newcomer", _leaves, ends_agent=True),
    "newcomer gone for good": Kind("newcomer", _gone, ends_agent=True),
}


@dataclass
class Choice:
    """Which kind is next, and whom it hits: each kind once before any comes again."""

    chance: random.Random
    kinds: tuple[str, ...] = tuple(KINDS)
    bag: list[str] = field(default_factory=list)
    joined: int = 0

    def draw(self) -> str:
        """Return the next kind."""
        if not self.bag:
            self.bag = list(self.kinds)
            self.chance.shuffle(self.bag)
        return self.bag.pop()

    def target(self, mesh: Storm, kind: str) -> str:
        """Return a machine for it; raises LookupError where there is none now."""
        found = sorted(self._possible(mesh, KINDS[kind]))
        if not found:
            raise LookupError(f"no machine for it ({KINDS[kind].role})")
        return self.chance.choice(found)

    def lasts_s(self, kind: str) -> float:
        """Return how long it lasts."""
        return self.chance.uniform(*KINDS[kind].lasts_s)

    def _possible(self, mesh: Storm, kind: Kind) -> set[str]:
        busy = mesh.hit | mesh.draining
        if kind.role == "new":
            return set() if self.joined == MOST_NEWCOMERS or mesh.founder in mesh.away else {
                f"x{self.joined}"
            }  # fmt: skip
        if kind.role == "newcomer":
            now = time.monotonic()
            return {
                name for name, at in list(mesh.newcomers.items()) if now - at > NEWCOMER_S
            } - busy
        if kind.role == "gateway":
            return {mesh.door} - busy
        if len(busy) >= MOST_HIT:
            return set()
        found = {name for name in mesh.workers if kind.role in mesh.roles(name)} - busy
        if kind.role == "owner":
            found -= {mesh.head}
        return found - ({mesh.kept} if kind.ends_agent else set())


def live(mesh: Storm, event: Event) -> None:
    """Do it, wait, put it right; what went wrong is in `event.error`."""
    kind = KINDS[event.kind]
    if kind.away:
        mesh.aside(event.name)
    try:
        undo = kind.act(mesh, event.name)
        time.sleep(event.lasts_s)
        try:
            undo()
        except (CoveyError, OSError, subprocess.SubprocessError) as error:
            event.error = str(error)
            time.sleep(_AGAIN_S)
            undo()
        if kind.away:
            mesh.status(event.name)
    except LookupError as error:
        event.words = str(error)
    except (CoveyError, OSError, subprocess.SubprocessError) as error:
        event.error = f"{event.error} {error}".strip()
    finally:
        if kind.away:
            mesh.back(event.name)
        event.over = time.monotonic()
