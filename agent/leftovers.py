"""What an agent that was killed left here, taken away. A shell; for `agent down` and `leave`.

    its interface   with wireguard-go, where that makes it
    its tables      in nftables: who may reach what, birthday paths, segments, the relay
    its socket      of the local API

An agent that starts goes on with all of it instead. Only what is this node's is touched: the
interface by its alias, the tables by its name, and nothing while an agent runs.
"""

from __future__ import annotations

import asyncio

from agent.acl import ruleset as acl
from agent.acl.firewall import Run, run_nft
from agent.config import Config
from agent.errors import CoveyError, EnvironmentFault
from agent.membership.store import StateDir
from agent.overlay.alias import Keeping
from agent.overlay.userspace import UserspaceDevice
from agent.probing.nft import Table
from agent.relay import ruleset as relay


def take_away(settings: Config, run: Run = run_nft) -> list[str]:
    """Remove it and return what it was, in words for people; nothing where there is nothing.

    Raises StateError while an agent runs, EnvironmentFault where the system refuses.
    """
    if not (settings.state_dir / "node.key").exists():
        return []
    with StateDir(settings.state_dir).lock() as state:
        return of(state, settings, run)


def of(state: StateDir, settings: Config, run: Run = run_nft) -> list[str]:
    """Do as `take_away` for a state directory that the caller has locked, and that has a key."""
    name = settings.network.interface
    device = UserspaceDevice(name, Keeping(place=str(settings.state_dir.resolve())))
    found = [f"interface {name}"] if device.clear(state.node_key().wireguard_private) else []
    found += asyncio.run(_tables(name, run))
    if settings.socket.is_socket():
        settings.socket.unlink(missing_ok=True)
        found.append(f"socket {settings.socket}")
    return found


async def _tables(interface: str, run: Run) -> list[str]:
    """Remove the tables that are there."""
    purposes = ("inet", "mss"), ("ip", "paths"), ("inet", "hold")
    tables = [Table(family, purpose, interface) for family, purpose in purposes]
    ours = {f"table {table.family} {table.name}" for table in tables}
    ours |= {f"table inet {name(interface)}" for name in (acl.table_name, relay.table_name)}
    try:
        listed = await run(["list", "tables"], b"")
    except CoveyError:
        return []  # no nft, no tables
    there = sorted(ours.intersection(map(str.strip, listed.stdout.decode().splitlines())))
    if not there:
        return []
    done = await run(["-f", "-"], "".join(f"delete {table}\n" for table in there).encode())
    if done.code != 0:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason"])[0]
        raise EnvironmentFault(
            f"nft does not remove {', '.join(there)}: {reason}", hint="Run this as root."
        )
    return there
