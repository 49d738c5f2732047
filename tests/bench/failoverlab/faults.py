"""What can happen to a machine of a mesh with one ring, and how it is put right again.

Each fault returns what undoes it. `FAULTS` are those of `failover.py`, by the names in its table,
each with the choice of its machine; `chaos.py` chooses machines itself.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.demo.fleet import kill_all
from failoverlab.ringed import Ringed

Undo = Callable[[], None]
# What no mesh can hide: the gateway's machine itself has no network.
GATEWAY_CUT_S = 2.0


def kill_engine(mesh: Ringed, name: str) -> Undo:
    """The engine on a machine dies; its agent starts another one by itself."""
    os.kill(mesh.engine(name), signal.SIGKILL)
    return lambda: None


def freeze(pid: int) -> Undo:
    """An engine, or an agent, stands still."""
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


def _drop_out(mesh: Ringed, name: str) -> Undo:
    """A machine loses its network for a moment; its streams can go on no sooner."""
    plug = cut(mesh, name)
    time.sleep(GATEWAY_CUT_S)
    plug()
    return lambda: None


FAULTS: dict[str, Callable[[Ringed], Undo]] = {
    "stage killed": lambda mesh: kill_engine(mesh, mesh.stages[0]),
    "stage frozen": lambda mesh: freeze(mesh.engine(mesh.stages[0])),
    "stage cut off": lambda mesh: cut(mesh, mesh.stages[0]),
    "head killed": lambda mesh: kill_engine(mesh, mesh.head),
    "head frozen": lambda mesh: freeze(mesh.engine(mesh.head)),
    "head cut off": lambda mesh: cut(mesh, mesh.head),
    "owner killed": lambda mesh: kill_agent(mesh, mesh.owner),
    "owner frozen": lambda mesh: freeze(mesh.pids(mesh.owner)[0]),
    "owner cut off": lambda mesh: cut(mesh, mesh.owner),
    "gateway's agent killed": lambda mesh: kill_agent(mesh, mesh.door),
    "gateway's agent frozen": lambda mesh: freeze(mesh.pids(mesh.door)[0]),
    f"gateway cut off for {GATEWAY_CUT_S:.0f} s": lambda mesh: _drop_out(mesh, mesh.door),
}
