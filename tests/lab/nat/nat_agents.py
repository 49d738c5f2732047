"""Agents behind the NATs of a lab: joined once, then brought up by pairs and timed.

The rendezvous are members with public addresses that relay as well; they stay up.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from matrix import End, Result, Route

from agent.demo.mesh import AgentLab
from agent.demo.natlab import NatLab, NatMachine, Site
from agent.errors import CoveyError

# A pair that has no direct path by then has none; birthday probing has two tries in it.
DIRECT_LIMIT_S = 14.0
FIRST_LIMIT_S = 45.0
# WireGuard may follow a peer's packet before the agent looks at it, which it does each half second.
NAMED_LIMIT_S = 2.0
_POLL_S = 0.02
_ROUTES = {
    "lan": Route.LAN, "ipv6": Route.IPV6, "public": Route.OPEN, "punched": Route.PUNCHED,
    "relayed": Route.RELAYED,
}  # fmt: skip
# Where nothing but a relay can be had, nobody waits for more.
HARD, BLOCKED = "hard", "blocked"


class _Machines:
    """The machines of a NatLab by name, as AgentLab wants them."""

    def __init__(self) -> None:
        self.machines: dict[str, NatMachine] = {}


class NatMesh(AgentLab):
    """A mesh whose members sit behind the NATs of `lab`."""

    def __init__(self, root: Path, lab: NatLab, rendezvous: list[Site]) -> None:
        self._places = _Machines()
        super().__init__(root, self._places)  # type: ignore[arg-type]
        self.nat = lab
        for site in lab.sites.values():
            self._places.machines |= {machine.name: machine for machine in site.machines}
        self._founder, *others = [site.machines[0].name for site in rendezvous]
        self.agent(self._founder, "mesh", "create", "nats")
        self.agent(self._founder, "up")
        ticket = self.ticket("--uses", "9", "--role", "relay", "--role", "worker")
        for name in others:
            self.agent(name, "join", ticket)

    def __enter__(self) -> NatMesh:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all agents: their sockets' names are taken as long as they run."""
        running = [name for name in self._places.machines if self.socket(name).exists()]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: self.try_agent(name, "down"), running))

    def ticket(self, *arguments: str) -> str:
        """Return a ticket of the founder's."""
        made: str = self.ask(self._founder, "invite", *arguments)["ticket"]
        return made

    def join(self, names: list[str], *, stay: bool = False) -> None:
        """Let these machines join, and stop their agents again unless they shall `stay`."""
        ticket = self.ticket("--uses", str(len(names)))

        def one(name: str) -> None:
            self.agent(name, "join", ticket)
            if not stay:
                self.agent(name, "down")

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, names))

    def connect(self, starter: End, other: End) -> Result:
        """Bring up two agents, the starter first; time from when both are until packets cross.

        They meet for the first time: where each other was reached before is forgotten.
        """
        one, two = starter.machine.name, other.machine.name
        for name in (one, two):
            (self.root / name / "paths.json").unlink(missing_ok=True)
        kinds = {starter.site.kind.name, other.site.kind.name}
        self.agent(one, "up")
        try:
            self.agent(two, "up")
            try:
                return self._watch(one, two, direct=kinds != {HARD} and BLOCKED not in kinds)
            finally:
                self.agent(two, "down")
        finally:
            self.agent(one, "down")

    def ping(self, name: str, peer: str) -> dict[str, Any]:
        """Ask a peer over the overlay once, by the agent's own means."""
        import asyncio

        from agent.client import AgentClient

        async def call() -> Any:
            async with AgentClient(self.socket(name)) as client:
                return await client.post("/v1/ping", {"peer": peer})

        answer: dict[str, Any] = asyncio.run(call())
        return answer

    def _watch(self, one: str, two: str, *, direct: bool) -> Result:
        began = time.monotonic()
        first_s = direct_s = None
        last: dict[str, Any] = {}
        while True:
            at = time.monotonic() - began
            try:
                last = self.ping(one, two)
            except CoveyError as error:
                last = {"rtt_ms": None, "route": "none", "why": error.message}
            answered = last["rtt_ms"] is not None
            if answered and first_s is None:
                first_s = time.monotonic() - began
            if answered and last["route"] not in ("relayed", "none"):
                direct_s = time.monotonic() - began
                break
            if at > (DIRECT_LIMIT_S if direct else 0.0) and first_s is not None:
                named_s = 0.0 if last["route"] != "none" else NAMED_LIMIT_S
                if at > first_s + named_s:
                    break
            if at > FIRST_LIMIT_S:
                break
            time.sleep(_POLL_S)
        route = _ROUTES.get(last["route"], Route.NONE) if first_s is not None else Route.NONE
        return Result(route, first_s, direct_s, last.get("why", ""))
