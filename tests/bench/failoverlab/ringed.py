"""A mesh with one ring of three and a gateway: what faults happen to, and clients ask.

For `failover.py` and `chaos.py`; only works inside a sandbox.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from agent.demo.fleet import Fleet, engines, wait_until

MODEL, PORT, NODES = "covey-mini", 8088, 3
_LIMIT_S = 120.0
# One in four is owned by its head's agent.
_DEPLOYS_MOST = 8
# A link is taken for a good one after some seconds of words in time (agent/engine/silence.py).
SETTLED_S = 8.0


class Ringed(Fleet):
    """So many workers and a gateway's machine; one ring of three, whose head is the founder's.

    `door` is the gateway's machine, `workers` are those of the workers, `served` is the
    deployment's name. Whoever makes some of the workers unreachable keeps their names in `away`, so
    that the others are asked how the ring is.
    """

    def __init__(self, root: Path, workers: int = 4) -> None:
        super().__init__(root, workers + 1)
        *self.workers, self.door = self.names
        self.away: set[str] = set()
        ticket = self.ticket(workers)
        for name in self.workers[1:]:
            self.agent(name, "join", ticket)
        gateway = self.ask(self.founder, "invite", "--role", "gateway")["ticket"]
        self.agent(self.door, "join", gateway)
        self.wait_connected(self.founder, workers)
        self._deploy(MODEL)
        self._gateway: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """Start the gateway and wait until it has found the head."""
        with (self.root / "gateway.log").open("ab") as log:
            self._gateway = self.machine(self.door).spawn(
                [sys.executable, "-m", "gateway", "serve", "--listen", f"127.0.0.1:{PORT}",
                 "--socket", str(self.socket(self.door))],
                env=self.environment(self.door), output=log,
            )  # fmt: skip
        self.whole_again()

    @property
    def gateway_pid(self) -> int:
        """The gateway's process id; 0 where none runs."""
        return self._gateway.pid if self._gateway is not None else 0

    def stop(self) -> None:
        """End the gateway."""
        if self._gateway is not None:
            self._gateway.terminate()
            self._gateway.wait(timeout=20)
            self._gateway = None

    def deployment(self) -> dict[str, Any]:
        """Return how the ring is, as the first machine that can be reached sees it."""
        asked = next(name for name in self.workers if name not in self.away)
        found: list[dict[str, Any]] = self.get(asked, "/v1/deployments")["deployments"]
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

    @property
    def owner(self) -> str:
        """The machine of the node that owns the deployment."""
        return str(self.deployment()["owner_name"])

    def owned_elsewhere(self) -> None:
        """Have the deployment owned by another node than the head's, by another name for it."""
        for number in range(_DEPLOYS_MOST):
            if self.owner != self.head:
                return
            self.agent(self.founder, "undeploy", self.served)
            self._deploy(f"{MODEL}-{number}")
            self.whole_again()
        raise LookupError("the owner is the head's own agent, however often it is deployed")

    def _deploy(self, name: str) -> None:
        self.served = name
        self.agent(self.founder, "deploy", MODEL, "--nodes", str(NODES), "--name", name)

    def engine(self, name: str) -> int:
        """Return the process id of the engine on a machine."""
        if found := engines(int(self.status(name)["pid"])):
            return found[0]
        raise LookupError(f"no engine runs on {name}")

    def whole_again(self) -> None:
        """Wait until the ring has its three nodes and answers through the gateway."""

        def whole() -> bool:
            found = self.deployment()
            return found["phase"] == "ready" and len(self.stages) == NODES - 1

        def served() -> bool:
            done = self.machine(self.door).run(["curl", "-s", f"http://127.0.0.1:{PORT}/v1/models"])
            return f'"{self.served}"' in done.stdout

        wait_until("the ring is whole", whole, _LIMIT_S)
        wait_until("the gateway has found it", served, _LIMIT_S)
        # What rings do in their first seconds is another matter: links are not known yet.
        time.sleep(SETTLED_S)
