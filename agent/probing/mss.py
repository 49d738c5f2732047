"""TCP over the overlay never sends segments that the overlay cannot carry whole.

A shell. Connections that begin on this machine know the overlay's MTU by their route. Those that it
forwards (a container's, a LAN's) know only their own link's and would depend on ICMP, which too
many filters drop; so the maximum segment size in their SYN packets is lowered to what the route
takes, both ways, in a table of our own, `inet covey-mss-INTERFACE`. It is never raised. The route's
MTU is asked for each SYN: when the path engine finds a larger MTU, nothing changes here.
"""

from __future__ import annotations

from agent.probing.nft import Run, Table, run_nft

# With the other packet-altering rules, before filters see the packet.
_PRIORITY = "mangle"
_CLAMP = "tcp flags & (syn | rst) == syn counter tcp option maxseg size set rt mtu"


class MssClamp:
    """The clamp for one interface; `run` replaces nft, for tests."""

    def __init__(self, interface: str, *, run: Run = run_nft) -> None:
        self._table = Table("inet", "mss", interface, run)
        self._interface = interface
        self._stands = False

    @property
    def table(self) -> str:
        """The table as `nft list table` takes it."""
        return f"{self._table.family} {self._table.name}"

    async def start(self) -> None:
        """Put it in force, in place of what a killed agent left. Raises EnvironmentFault."""
        await self._table.replace(rules(self._interface))
        self._stands = True

    async def stop(self) -> None:
        """Remove it if it was put in force. Raises EnvironmentFault."""
        if self._stands:
            self._stands = False
            await self._table.remove()


def rules(interface: str) -> str:
    """Return the table's chains. What leaves by the interface, and what is forwarded from it."""
    chains = (
        ("out", "postrouting", f'oifname "{interface}" {_CLAMP}'),
        ("through", "forward", f'iifname "{interface}" {_CLAMP}'),
    )
    return "".join(
        f"  chain {name} {{\n    type filter hook {hook} priority {_PRIORITY}; policy accept;\n"
        f"    {rule}\n  }}\n"
        for name, hook, rule in chains
    )
