"""What can happen to a machine of a mesh with one ring, and how it is put right again.

Each fault returns what undoes it. `FAULTS` are those of `failover.py`, by the names in its table,
each with the choice of its machine; `chaos.py` chooses machines itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.demo.fleet import kill_all
from failoverlab.ringed import Ringed

Undo = Callable[[], None]


def kill_engine(mesh: Ringed, name: str) -> Undo:
    """The engine on a machine dies; its agent starts another one by itself."""
    os.kill(mesh.engine(name), signal.SIGKILL)
    return lambda: None


def freeze(pid: int) -> Undo:
    """An engine stands still."""
    os.kill(pid, signal.SIGSTOP)

    def thaw() -> None:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)

    return thaw


def cut(mesh: Ringed, name: str) -> Undo:
    """A machine loses its network."""
    lan: Any = mesh.lab
    lan.unplug(name)
    return lambda: lan.plug(name)


def kill_agent(mesh: Ringed, name: str) -> Undo:
    """The agent of a machine dies alone; what it left is still there when it is started again."""
    kill_all([mesh.pids(name)[0]])
    return lambda: start(mesh, name)


def fail_power(mesh: Ringed, name: str) -> Undo:
    """The agent of a machine dies with all its children, as when power fails."""
    mesh.kill(name)
    return lambda: start(mesh, name)


def start(mesh: Ringed, name: str) -> None:
    """Start the agent of a machine."""
    mesh.agent(name, "up")


def _owner(mesh: Ringed) -> str:
    """Return the machine of the owner, where that is not the head's."""
    owner = mesh.owner
    if owner == mesh.head:
        raise LookupError("the owner is the head's own agent")
    return owner


FAULTS: dict[str, Callable[[Ringed], Undo]] = {
    "stage killed": lambda mesh: kill_engine(mesh, mesh.stages[0]),
    "stage frozen": lambda mesh: freeze(mesh.engine(mesh.stages[0])),
    "stage cut off": lambda mesh: cut(mesh, mesh.stages[0]),
    "head killed": lambda mesh: kill_engine(mesh, mesh.head),
    "owner killed": lambda mesh: kill_agent(mesh, _owner(mesh)),
    "gateway's agent killed": lambda mesh: kill_agent(mesh, mesh.door),
}
