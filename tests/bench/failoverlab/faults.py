"""What can happen to a mesh with one ring, and how it is put right again.

Each fault takes the mesh and returns what undoes it. `kind` names are those of the table.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.demo.fleet import Fleet, engines, kill_all, wait_until

Undo = Callable[[], None]
WORKERS, DOOR = 4, "n4"
MODEL, PORT = "covey-mini", 8088
_LIMIT_S = 120.0
# A link is taken for a good one after some seconds of words in time (agent/engine/silence.py).
SETTLED_S = 8.0


class Ringed(Fleet):
    """Four workers and a gateway's machine; one ring of three, whose head is the founder's."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, WORKERS + 1)
        workers = self.ticket(WORKERS)
        for name in self.names[1:WORKERS]:
            self.agent(name, "join", workers)
        self.agent(DOOR, "join", self.ask(self.founder, "invite", "--role", "gateway")["ticket"])
        self.wait_connected(self.founder, WORKERS)
        self.agent(self.founder, "deploy", MODEL, "--nodes", "3")
        self._gateway: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """Start the gateway and wait until it has found the head."""
        with (self.root / "gateway.log").open("ab") as log:
            self._gateway = self.machine(DOOR).spawn(
                [sys.executable, "-m", "gateway", "serve", "--listen", f"127.0.0.1:{PORT}",
                 "--socket", str(self.socket(DOOR))],
                env=self.environment(DOOR), output=log,
            )  # fmt: skip
        self.whole_again()

    def stop(self) -> None:
        """End the gateway."""
        if self._gateway is not None:
            self._gateway.terminate()
            self._gateway.wait(timeout=20)

    def deployment(self) -> dict[str, Any]:
        """Return how the ring is, as its head's node sees it."""
        found: list[dict[str, Any]] = self.get(self.founder, "/v1/deployments")["deployments"]
        return found[0]

    @property
    def head(self) -> str:
        """The machine of the head."""
        return str(self.deployment()["head_name"])

    @property
    def stages(self) -> list[str]:
        """The machines of the other stages, in order."""
        found = [stage["name"] for stage in self.deployment()["stages"]]
        return [name for name in found[1:] if name != found[0]]

    def engine(self, name: str) -> int:
        """Return the process id of the engine on a machine."""
        if found := engines(int(self.status(name)["pid"])):
            return found[0]
        raise SystemExit(f"no engine runs on {name}")

    def whole_again(self) -> None:
        """Wait until the ring has its three nodes and answers through the gateway."""

        def whole() -> bool:
            found = self.deployment()
            return found["phase"] == "ready" and len(self.stages) == 2

        def served() -> bool:
            done = self.machine(DOOR).run(["curl", "-s", f"http://127.0.0.1:{PORT}/v1/models"])
            return MODEL in done.stdout

        wait_until("the ring is whole", whole, _LIMIT_S)
        wait_until("the gateway has found it", served, _LIMIT_S)
        # What rings do in their first seconds is another matter: links are not known yet.
        time.sleep(SETTLED_S)


def kill_stage(mesh: Ringed) -> Undo:
    """The engine of a stage dies."""
    os.kill(mesh.engine(mesh.stages[0]), signal.SIGKILL)
    return lambda: None


def freeze_stage(mesh: Ringed) -> Undo:
    """The engine of a stage stands still."""
    pid = mesh.engine(mesh.stages[0])
    os.kill(pid, signal.SIGSTOP)

    def thaw() -> None:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)

    return thaw


def cut_stage(mesh: Ringed) -> Undo:
    """The machine of a stage loses its network."""
    name = mesh.stages[0]
    lan: Any = mesh.lab
    lan.unplug(name)
    return lambda: lan.plug(name)


def kill_head(mesh: Ringed) -> Undo:
    """The engine of the head dies."""
    os.kill(mesh.engine(mesh.head), signal.SIGKILL)
    return lambda: None


def kill_owner(mesh: Ringed) -> Undo:
    """The agent that owns the deployment dies; another one, where that is the head's own."""
    names = {mesh.status(name)["node"]: name for name in mesh.names}
    owner = names[mesh.deployment()["owner"]]
    if owner == mesh.head:
        raise LookupError("the owner is the head's own agent")
    pid, children = mesh.pids(owner)
    kill_all([pid])

    def again() -> None:
        kill_all(children)
        mesh.agent(owner, "up")

    return again


def kill_gateways_agent(mesh: Ringed) -> Undo:
    """The agent beside the gateway dies, and leaves its WireGuard behind."""
    pid, children = mesh.pids(DOOR)
    kill_all([pid])

    def again() -> None:
        kill_all(children)
        mesh.agent(DOOR, "up")

    return again


FAULTS: dict[str, Callable[[Ringed], Undo]] = {
    "stage killed": kill_stage,
    "stage frozen": freeze_stage,
    "stage cut off": cut_stage,
    "head killed": kill_head,
    "owner killed": kill_owner,
    "gateway's agent killed": kill_gateways_agent,
}
