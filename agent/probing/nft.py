"""Our small tables in nftables: put in force whole, listed, removed. A shell around `nft`.

Each table is this node's own, named after its interface, and no other table is ever named. Used by
`snat.py` and `mss.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.acl.firewall import Run, run_nft
from agent.errors import EnvironmentFault
from agent.overlay.device import check_name

__all__ = ["Run", "Table", "run_nft"]

# nftables' names lack two characters that interface names have, and have "/", which those lack.
_ESCAPES = str.maketrans({"=": "/e", "+": "/p"})


class Table:
    """The table FAMILY covey-PURPOSE-INTERFACE. One call at a time; `run` replaces nft."""

    def __init__(self, family: str, purpose: str, interface: str, run: Run = run_nft) -> None:
        check_name(interface)
        self.family = family
        self.name = f"covey-{purpose}-{interface.translate(_ESCAPES)}"
        self._purpose = purpose
        self._run = run

    async def replace(self, body: str) -> None:
        """Put `body` (chains, sets) in force as the whole table, or change nothing."""
        table = f"table {self.family} {self.name}"
        await self._nft(["-f", "-"], f"{table}\ndelete {table}\n{table} {{\n{body}}}\n")

    async def remove(self) -> None:
        """Remove the table if it is there."""
        table = f"table {self.family} {self.name}"
        await self._nft(["-f", "-"], f"{table}\ndelete {table}\n")

    async def listing(self) -> str:
        """Return the table as nft lists it; empty if it is not there."""
        done = await self._run(["list", "tables", self.family], b"")
        lines = done.stdout.decode(errors="replace").splitlines()
        if done.code == 0 and f"table {self.family} {self.name}" not in map(str.strip, lines):
            return ""
        return await self._nft(["list", "table", self.family, self.name])

    async def _nft(self, arguments: Sequence[str], stdin: str = "") -> str:
        done = await self._run(arguments, stdin.encode())
        if done.code == 0:
            return done.stdout.decode(errors="replace")
        said = done.stderr.decode(errors="replace").strip()
        if "Operation not permitted" in said:
            raise EnvironmentFault(
                "nft may not change this machine's packet filter: that needs CAP_NET_ADMIN",
                hint="Run the agent as root, or give it CAP_NET_ADMIN.",
            )
        reason = said.splitlines()[0] if said else f"exit code {done.code}"
        raise EnvironmentFault(
            f"nft failed for {self._purpose}: {reason}",
            hint="This kernel may lack nftables or address translation: see `dmesg`.",
        )
