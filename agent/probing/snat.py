"""Birthday paths: WireGuard's packets to one peer leave from the port that this peer can reach.

A shell. For each path one rule each way in a table of our own, `ip covey-paths-INTERFACE`, that is
there only while there are paths (address translation turns on connection tracking for all of the
machine). Out: what WireGuard's port sends to the peer's place gets the path's local port as its
source. In: what the peer sends to that local port gets WireGuard's as its destination, so it does
not matter whose packet is first. WireGuard, in the kernel or not, and our raw socket pass both
hooks alike, and neither knows of it: WireGuard's endpoint is the peer's place as it is.

Flows that the kernel tracks already keep the translation they began with, so those between the two
places, and no others, are forgotten whenever a path comes or goes. The rules name this machine's
own address, so what it forwards for others is never touched. IPv4 only: IPv6 has no such NATs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from agent.errors import EnvironmentFault
from agent.probing import conntrack
from agent.probing.nft import Run, Table, run_nft
from agent.probing.port import Place

_log = logging.getLogger(__name__)

# Before the operator's own translations (masquerade and the like, priority 100 and -100): the
# first that decides is the one that holds, and ours is about one flow.
_OUT_PRIORITY, _IN_PRIORITY = "srcnat - 5", "dstnat - 5"
# Each path is a hard-NAT peer; 1,000 nodes have at most some hundred.
PATHS_MAX = 1024
_COMMENT = re.compile(r'comment "path (\d+) (\S+) (\d+) (\S+) (\d+)"')

Forget = Callable[[list[tuple[Place, Place]]], int]


@dataclass(frozen=True, order=True)
class BirthdayPath:
    """To the peer at `peer`, from `local_address` by way of `local_port`."""

    peer: Place
    local_address: str
    local_port: int

    def __post_init__(self) -> None:
        """Refuse what would make no rule, or another than is meant."""
        for host, port in (self.peer, (self.local_address, self.local_port)):
            if host != str(IPv4Address(host)) or not 1 <= port <= 65535:
                raise ValueError(f"{host}:{port} is no place for a birthday path")


class BirthdayRules:
    """This node's table of paths; `run` and `forget` replace the system, for tests."""

    def __init__(
        self,
        interface: str,
        wireguard_port: int,
        *,
        run: Run = run_nft,
        forget: Forget = conntrack.forget,
    ) -> None:
        if not 1 <= wireguard_port <= 65535:
            raise ValueError(f"{wireguard_port} is not a UDP port")
        self._table = Table("ip", "paths", interface, run)
        self._port = wireguard_port
        self._forget_flows = forget
        self._paths: dict[Place, BirthdayPath] = {}
        self._lock = asyncio.Lock()

    @property
    def table(self) -> str:
        """The table as `nft list table` takes it."""
        return f"{self._table.family} {self._table.name}"

    def paths(self) -> list[BirthdayPath]:
        """Return the paths in force."""
        return sorted(self._paths.values())

    async def start(self) -> None:
        """Remove what a killed agent left. Raises EnvironmentFault, as all that follows."""
        async with self._lock:
            left = _COMMENT.findall(await self._table.listing())
            await self._table.remove()
            for wireguard, local, port, peer, peer_port in left:
                with contextlib.suppress(ValueError):  # not as we write them: nothing of ours
                    path = BirthdayPath((peer, int(peer_port)), local, int(port))
                    self._forget(path, int(wireguard))
        if left:
            _log.info("left-over birthday paths removed table=%s paths=%d", self.table, len(left))

    async def add(self, path: BirthdayPath) -> None:
        """Put a path in force, in place of one to the same peer; the others are not disturbed.

        Send something to the peer next: what it sends before that is already WireGuard's.
        """
        if path.local_port == self._port:
            raise ValueError(f"{path} leaves from WireGuard's port by itself")
        async with self._lock:
            before = self._paths.get(path.peer)
            if before is None and len(self._paths) >= PATHS_MAX:
                raise ValueError(f"there are {PATHS_MAX} birthday paths already")
            await self._apply({**self._paths, path.peer: path})
            if before is not None:
                self._forget(before, self._port)
            self._forget(path, self._port)
        _log.info("birthday path up peer=%s local_port=%d", path.peer, path.local_port)

    async def remove(self, peer: Place) -> None:
        """Remove the path to that peer, if there is one."""
        async with self._lock:
            path = self._paths.get(peer)
            if path is None:
                return
            await self._apply({p: kept for p, kept in self._paths.items() if p != peer})
            self._forget(path, self._port)
        _log.info("birthday path down peer=%s local_port=%d", peer, path.local_port)

    async def stop(self) -> None:
        """Remove everything; may be called twice."""
        async with self._lock:
            paths = list(self._paths.values())
            await self._apply({})
            for path in paths:
                self._forget(path, self._port)

    async def _apply(self, paths: dict[Place, BirthdayPath]) -> None:
        if paths:
            await self._table.replace(rules(self._port, sorted(paths.values())))
        elif self._paths:
            await self._table.remove()
        self._paths = paths

    def _forget(self, path: BirthdayPath, wireguard_port: int) -> None:
        """Forget the flows that WireGuard's port and the path's have with the peer."""
        flows = []
        for port in (wireguard_port, path.local_port):
            ours = (path.local_address, port)
            flows += [(ours, path.peer), (path.peer, ours)]
        try:
            self._forget_flows(flows)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot make the kernel forget the flows with {path.peer[0]}: {error.strerror}",
                hint="Run the agent as root, or give it CAP_NET_ADMIN.",
            ) from error


def rules(wireguard_port: int, paths: list[BirthdayPath]) -> str:
    """Return the table's chains; equal input gives equal text."""
    out, back = [], []
    for path in paths:
        local, (peer, peer_port) = path.local_address, path.peer
        out.append(
            f"ip saddr {local} udp sport {wireguard_port} ip daddr {peer} udp dport {peer_port}"
            f" counter snat to :{path.local_port} comment"
            f' "path {wireguard_port} {local} {path.local_port} {peer} {peer_port}"'
        )
        back.append(
            f"ip saddr {peer} udp sport {peer_port} ip daddr {local} udp dport {path.local_port}"
            f" counter dnat to :{wireguard_port}"
        )
    return _chain("out", f"postrouting priority {_OUT_PRIORITY}", out) + _chain(
        "back", f"prerouting priority {_IN_PRIORITY}", back
    )


def _chain(name: str, hook: str, lines: list[str]) -> str:
    head = f"  chain {name} {{\n    type nat hook {hook}; policy accept;\n"
    return head + "".join(f"    {line}\n" for line in lines) + "  }\n"
