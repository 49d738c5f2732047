"""Agents on one LAN, in namespaces: for tests and benches of the mesh itself, without a model.

Only works inside a sandbox.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agent.demo.mesh import AgentLab
from agent.demo.netlab import Lan
from agent.errors import PeerError

_LIMIT_S = 60.0
_POLL_S = 0.05


class Fleet(AgentLab):
    """`count` machines n0, n1, … on one LAN; the first makes the mesh and is up."""

    def __init__(self, root: Path, count: int, *, lan: int = 2, letter: str = "n") -> None:
        """`lan` and `letter`: others for each fleet in a sandbox; tests of LANs have LAN 1."""
        super().__init__(root, Lan(lan))
        self.names = [f"{letter}{number}" for number in range(count)]
        for name in self.names:
            self.lab.add(name)
        self.founder = self.names[0]
        self.agent(self.founder, "mesh", "create", "fleet")
        self.agent(self.founder, "up")

    def ticket(self, uses: int = 1) -> str:
        """Return a ticket for so many workers."""
        made: str = self.ask(self.founder, "invite", "--uses", str(uses))["ticket"]
        return made

    def join_all(self, parallel: int = 4, *, pause_s: float = 0.0) -> None:
        """Let everyone join, a few at a time: each imports libp2p, a second of one core.

        `pause_s`: after each one, for what its coming means to the others.
        """
        ticket = self.ticket(len(self.names))

        def join(name: str) -> None:
            self.agent(name, "join", ticket)
            time.sleep(pause_s)

        with ThreadPoolExecutor(parallel) as pool:
            list(pool.map(join, self.names[1:]))

    def status(self, name: str) -> dict[str, Any]:
        """Return an agent's status."""
        found: dict[str, Any] = self.get(name, "/v1/status")
        return found

    def peers(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the peers of an agent, by name."""
        return {peer["name"]: peer for peer in self.get(name, "/v1/peers")["peers"]}

    def members(self, name: str) -> dict[str, dict[str, Any]]:
        """Return all who are or were members as an agent sees it, by name."""
        return {one["name"]: one for one in self.get(name, "/v1/members")["members"]}

    def pids(self, name: str) -> tuple[int, list[int]]:
        """Return the pid of an agent, and those of its children."""
        pid = int(self.status(name)["pid"])
        # Children stand under the thread that started them, and wireguard-go's is not the first.
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return pid, [int(child) for task in tasks for child in task.read_text().split()]

    def kill(self, name: str) -> None:
        """End an agent and its children at once, as a power failure does."""
        pid, children = self.pids(name)
        kill_all([pid, *children])


def engines(agent: int) -> list[int]:
    """Return an agent's (its pid) engine processes at work: one in advance has no llama.cpp."""
    tasks = Path(f"/proc/{agent}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    found = []
    for child in children:
        with contextlib.suppress(OSError):  # it has just ended
            process = Path(f"/proc/{child}")
            is_engine = "agent.engine.process" in (process / "cmdline").read_text()
            if is_engine and "libllama" in (process / "maps").read_text():
                found.append(child)
    return found


def kill_all(pids: Iterable[int]) -> None:
    """Kill these processes; wireguard-go may have ended with its agent by itself."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(what: str, true: Any, limit_s: float = _LIMIT_S) -> float:
    """Wait until `true()` holds; return the seconds. Raises PeerError with `what` after a while."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > limit_s:
            raise PeerError(f"{what}: not within {limit_s:g} s")
        time.sleep(_POLL_S)
    return time.monotonic() - began
