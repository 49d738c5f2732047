"""Keeps WireGuard from following packets back to the path that it just left. A shell.

WireGuard takes for a peer's endpoint whatever its last packet came from. While two ends move to
another path, packets that are still under way on the old one would pull each back. For that moment
they are made to look as if they came by the new one: a rule in a table of our own, before
connection tracking, rewrites their source. Our own datagrams, known by MAGIC, are left alone: they
say which path they came by. Where nothing can be rewritten (another family) they are dropped.
"""

from __future__ import annotations

import asyncio
import logging

from agent.errors import EnvironmentFault
from agent.probing.nft import Run, Table, run_nft
from agent.probing.port import MAGIC, Place

_log = logging.getLogger(__name__)

# Before connection tracking (-200) has seen the packet: it would make it a flow of its own.
_PRIORITY = -300
# A node that moves all its peers at once has as many holds as peers, for 1.5 s.
HOLDS_MAX = 1024


class Holds:
    """This node's holds, in the table `inet covey-hold-INTERFACE`; while there are any."""

    def __init__(self, interface: str, wireguard_port: int, *, run: Run = run_nft) -> None:
        if not 1 <= wireguard_port <= 65535:
            raise ValueError(f"{wireguard_port} is not a UDP port")
        self._table = Table("inet", "hold", interface, run)
        self._port = wireguard_port
        self._holds: dict[Place, Place] = {}
        self._stands = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.fault: EnvironmentFault | None = None

    @property
    def table(self) -> str:
        """The table as `nft list table` takes it."""
        return f"{self._table.family} {self._table.name}"

    async def start(self) -> None:
        """Remove what a killed agent left, and be ready. Raises EnvironmentFault."""
        await self._table.remove()
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="holds")

    def hold(self, old: Place, new: Place) -> None:
        """Have what comes from `old` look as if it came from `new`, from a moment later on."""
        if len(self._holds) < HOLDS_MAX and self._task is not None:
            self._holds[old] = new
            self._news.set()

    def release(self, old: Place) -> None:
        """Undo that."""
        if self._holds.pop(old, None) is not None:
            self._news.set()

    async def stop(self) -> None:
        """Remove the table; may be called twice."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task})
        self._holds.clear()
        if self._stands:
            await self._table.remove()
            self._stands = False

    async def _follow(self) -> None:
        """Put what is wanted in force, one change after the other."""
        while True:
            await self._news.wait()
            self._news.clear()
            holds = dict(self._holds)
            try:
                if holds:
                    self._stands = True
                    await self._table.replace(rules(self._port, holds))
                elif self._stands:
                    await self._table.remove()
                    self._stands = False
                self.fault = None
            except EnvironmentFault as fault:
                if self.fault is None:
                    _log.warning("WireGuard may go back to a path it left: %s", fault.line())
                self.fault = fault


def rules(wireguard_port: int, holds: dict[Place, Place]) -> str:
    """Return the table's chain; equal input gives equal text."""
    lines = [_rule(wireguard_port, old, new) for old, new in sorted(holds.items())]
    head = f"  chain hold {{\n    type filter hook prerouting priority {_PRIORITY};\n"
    return head + "".join(f"    {line}\n" for line in lines) + "  }\n"


def _rule(wireguard_port: int, old: Place, new: Place) -> str:
    family, other = ("ip6" if ":" in place[0] else "ip" for place in (old, new))
    match = (
        f"{family} saddr {old[0]} udp sport {old[1]} udp dport {wireguard_port}"
        f" @th,64,32 != 0x{MAGIC.hex()}"
    )
    if family != other:
        return f"{match} drop"
    return f"{match} {family} saddr set {new[0]} udp sport set {new[1]}"
