"""A mesh of real agents on the machines of a `NetLab`, driven by the commands that people type.

Used by the demo and by the lab tests; only works inside a sandbox.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agent.demo.netlab import Lan, Machine, NetLab
from agent.errors import EngineError, PeerError

Report = Callable[[str], None]

MESH_NAME = "demo"
WORKERS = ("alpha", "beta", "gamma")
GATEWAY = "door"
MODEL = "covey-mini"
GATEWAY_PORT = 8088
_CONNECT_TIMEOUT_S = 40.0
_POLL_S = 0.1


class AgentLab:
    """Agents on the machines of a network, each with its own state; the commands to drive them."""

    def __init__(self, root: Path, lab: NetLab | Lan) -> None:
        self.root = root
        self.lab = lab
        self.acl = root / "acl.toml"
        root.mkdir(parents=True, exist_ok=True)
        self.acl.touch()

    def machine(self, name: str) -> Machine:
        """Return one of the machines."""
        return self.lab.machines[name]

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment in which commands run on a machine."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
        return {
            **kept,
            "COVEY_SANDBOX": "1",
            "COVEY_CONFIG": os.devnull,
            "COVEY_NODE_NAME": name,
            "COVEY_NODE_STATE_DIR": str(self.root / name),
            # All namespaces share one /run/wireguard, so interface names differ.
            # Not the rules of the machine that this runs on.
            "COVEY_NETWORK_ACL": str(self.acl),
            "COVEY_NETWORK_INTERFACE": f"covey-{name}",
            # Four nodes share this machine's cores; one thread each keeps the demo honest.
            "COVEY_ENGINE_THREADS": "1",
        }

    def socket(self, name: str) -> Path:
        """Return the local API's socket of a machine's agent."""
        return self.root / name / "agent.sock"

    def agent(self, name: str, *arguments: str, timeout_s: float = 120) -> str:
        """Run `agent ARGUMENTS` on a machine and return its output; raises what it reported."""
        done = self.try_agent(name, *arguments, timeout_s=timeout_s)
        if done.returncode != 0:
            line = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise PeerError(f"`agent {arguments[0]}` on {name} failed: {line}")
        return done.stdout

    def try_agent(
        self, name: str, *arguments: str, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run `agent ARGUMENTS` on a machine and return how it ended."""
        command = [sys.executable, "-m", "agent", *arguments]
        return self.machine(name).run(command, env=self.environment(name), timeout_s=timeout_s)

    def ask(self, name: str, *arguments: str) -> Any:
        """Run `agent ARGUMENTS --json` on a machine and return the decoded answer."""
        return json.loads(self.agent(name, *arguments, "--json"))

    def get(self, name: str, path: str) -> Any:
        """Return what a machine's agent answers on its local API; costs no new process."""

        from agent.client import AgentClient  # `agent --help` needs none of it, and names the demo

        async def call() -> Any:
            async with AgentClient(self.socket(name)) as client:
                return await client.get(path)

        return asyncio.run(call())

    def wait_connected(self, name: str, peers: int = len(WORKERS)) -> None:
        """Wait until a machine knows so many peers, with WireGuard sessions where it needs one.

        In a mesh of few it needs one with each (network.keep_paths). Raises PeerError.
        """
        deadline = time.monotonic() + _CONNECT_TIMEOUT_S
        connected = 0
        while time.monotonic() < deadline:
            known = self.get(name, "/v1/peers")["peers"]
            connected = sum(p["path"] == "direct" or p.get("route") == "asleep" for p in known)
            if connected >= peers:
                return
            time.sleep(_POLL_S)
        raise PeerError(
            f"{name} reached {connected} of {peers} peers within {_CONNECT_TIMEOUT_S:.0f} s",
            hint=f"The logs are in {self.root}.",
        )


class DemoMesh(AgentLab):
    """Three workers and a gateway, each an agent in a namespace of its own."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, NetLab())
        for name in (*WORKERS, GATEWAY):
            self.lab.add(name)
        self._gateways: list[subprocess.Popen[bytes]] = []

    def up(self, report: Report) -> None:
        """Make the mesh on the first worker, let the others join, wait until all are connected."""
        first, *others = WORKERS
        self.agent(first, "mesh", "create", MESH_NAME)
        self.agent(first, "up")
        report(f"{first} made the mesh and is up")
        tickets = {name: self._ticket("worker") for name in others}
        tickets[GATEWAY] = self._ticket("gateway")
        with ThreadPoolExecutor(len(tickets)) as pool:
            joins = {
                name: pool.submit(self.agent, name, "join", ticket)
                for name, ticket in tickets.items()
            }
            for name, join in joins.items():
                join.result()
                report(f"{name} joined with a ticket")
        self.wait_connected(first)
        report("WireGuard connects every node with the head")

    def deploy(self, nodes: int, report: Report, *, name: str = MODEL) -> dict[str, Any]:
        """Cut the bundled model over so many workers and wait until it answers."""
        head = WORKERS[0]
        arguments = ["deploy", MODEL, "--name", name, "--nodes", str(nodes), "--json"]
        done = self.try_agent(head, *arguments)
        if done.returncode != 0:
            raise EngineError(done.stderr.strip() or "the deployment failed without a word")
        answer: dict[str, Any] = json.loads(done.stdout)
        report(f"{name} answers, cut over {nodes} nodes")
        return answer

    def gateway(self, arguments: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        """Start `gateway serve ARGUMENTS` on the gateway's machine."""
        with (self.root / "gateway.log").open("ab") as log:
            self._gateways.append(
                self.machine(GATEWAY).spawn(
                    [sys.executable, "-m", "gateway", "serve", "--drain", "5",
                     *arguments,
                     "--socket", str(self.socket(GATEWAY))],
                    env=self.environment(GATEWAY), output=log, pass_fds=pass_fds,
                )
            )  # fmt: skip

    def wait_served(self, models: Set[str]) -> None:
        """Wait until the gateway on its machine's usual port has found these models."""
        url = f"http://127.0.0.1:{GATEWAY_PORT}/v1/models"
        deadline = time.monotonic() + _CONNECT_TIMEOUT_S
        found: set[str] = set()
        while time.monotonic() < deadline:
            answer = self.machine(GATEWAY).run(["curl", "-s", url]).stdout
            # Empty while it does not listen, and OpenAI's error form while it knows no agent.
            found = {model["id"] for model in json.loads(answer or "{}").get("data", [])}
            if found >= models:
                return
            time.sleep(_POLL_S)
        raise PeerError(
            f"the gateway found {', '.join(sorted(found)) or 'no model'} of "
            f"{', '.join(sorted(models))} within {_CONNECT_TIMEOUT_S:.0f} s"
        )

    def stop_gateways(self) -> None:
        """End the gateways that were started here."""
        while self._gateways:
            process = self._gateways.pop()
            process.terminate()
            process.wait(timeout=20)

    def _ticket(self, role: str) -> str:
        ticket: str = self.ask(WORKERS[0], "invite", "--role", role)["ticket"]
        return ticket
