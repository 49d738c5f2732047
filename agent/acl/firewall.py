"""Applies rulesets with the program `nft`, and sees when someone else touches the table. A shell.

Only the one table of `ruleset.py` is ever touched. A table that a killed agent left is replaced
by the first `apply`; until then it goes on filtering by the rules of that time. Used by
`service.py`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from agent.acl import ruleset
from agent.errors import EnvironmentFault
from agent.overlay.device import check_name
from agent.unreadable import UNREADABLE

_log = logging.getLogger(__name__)

# A table of 1,000 members takes well under 0.2 s; past this the kernel hangs.
COMMAND_TIMEOUT_S = 10.0
# nft lies where an ordinary user's PATH does not look.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
# linux/netlink.h and linux/netfilter/nfnetlink.h: the family, the option, the group of events.
_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES_EVENTS = 270, 1, 7
_EVENT_BYTES = 65536


@dataclass(frozen=True)
class Finished:
    """How a run of nft ended: its exit code and what it printed."""

    code: int
    stdout: bytes
    stderr: bytes


Run = Callable[[Sequence[str], bytes], Awaitable[Finished]]
Count = tuple[int, int]
"""Packets and bytes."""


class Events:
    """Tells whether the table was touched. Needs CAP_NET_ADMIN: raises OSError without it."""

    def __init__(self, table: str) -> None:
        self._mark = table.encode() + b"\0"
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        try:
            self._socket.setblocking(False)
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES_EVENTS)
        except BaseException:
            self._socket.close()
            raise

    def since_last(self) -> bool:
        """Say whether the table was touched since the last call (or since we were made)."""
        touched = False
        while True:
            try:
                touched |= self._mark in self._socket.recv(_EVENT_BYTES)
            except BlockingIOError:
                return touched
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                touched = True  # more events than the kernel could keep: ours may be among them

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


async def run_nft(arguments: Sequence[str], stdin: bytes) -> Finished:
    """Run nft to its end. Raises EnvironmentFault when it is not installed, or hangs."""
    program = shutil.which("nft", path=_PATH)
    if program is None:
        raise EnvironmentFault("nft is not installed", hint="Install the package nftables.")
    process = await asyncio.create_subprocess_exec(
        program, *arguments, env={**os.environ, "LC_ALL": "C"},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            stdout, stderr = await process.communicate(stdin)
    except TimeoutError:
        raise EnvironmentFault(
            f"nft did not end within {COMMAND_TIMEOUT_S:.0f} s",
            hint="Look at the kernel's log with `dmesg`.",
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Finished(process.returncode or 0, stdout, stderr)


class Firewall:
    """This node's table. One call at a time; `run` and `events` replace the system, for tests."""

    def __init__(
        self, interface: str, run: Run = run_nft, events: Callable[[str], Events] = Events
    ) -> None:
        check_name(interface)
        self._interface = interface
        self._table = ruleset.table_name(interface)
        self._run = run
        self._make_events = events
        self._events: Events | None = None

    @property
    def table(self) -> str:
        """The table as `nft list table` takes it."""
        return f"inet {self._table}"

    async def apply(self, text: str) -> None:
        """Put a ruleset in force, whole or not at all. Raises EnvironmentFault."""
        await self._nft(["-f", "-"], text)
        if self._events is None:
            try:
                self._events = self._make_events(self._table)
            except OSError as error:
                _log.warning("acl table cannot be watched table=%s: %s", self._table, error)
        else:
            self._events.since_last()  # what we just did ourselves

    def touched(self) -> bool:
        """Say whether anyone else touched the table since it was applied (`nft flush ruleset`)."""
        return self._events is not None and self._events.since_last()

    async def counters(self) -> dict[str, Count]:
        """Return packets and bytes of the table's counters by name. Raises EnvironmentFault."""
        raw = await self._nft(["-j", "list", "counters", "table", "inet", self._table])
        try:
            listing = msgspec.json.decode(raw, type=_Listing)
        except UNREADABLE as error:
            raise EnvironmentFault(f"nft printed what cannot be read: {error}") from None
        return {
            item.counter.name: (item.counter.packets, item.counter.bytes)
            for item in listing.nftables
            if item.counter is not None
        }

    async def remove(self) -> None:
        """Remove the table if it is there. Raises EnvironmentFault."""
        if self._events is not None:
            self._events.close()
            self._events = None
        await self._nft(["-f", "-"], ruleset.removal(self._interface))

    async def _nft(self, arguments: Sequence[str], stdin: str = "") -> bytes:
        done = await self._run(arguments, stdin.encode())
        if done.code == 0:
            return done.stdout
        said = done.stderr.decode(errors="replace").strip()
        if "Operation not permitted" in said:
            raise EnvironmentFault(
                "nft may not change this machine's packet filter: that needs CAP_NET_ADMIN",
                hint="Run the agent as root, or give it CAP_NET_ADMIN.",
            )
        reason = said.splitlines()[0] if said else f"exit code {done.code}"
        raise EnvironmentFault(
            f"nft failed: {reason}",
            hint="This kernel may lack nftables or connection tracking: see `dmesg`.",
        )


class _Counter(msgspec.Struct):
    """One counter in nft's JSON, which has more fields than these."""

    name: str
    packets: int
    bytes: int


class _Item(msgspec.Struct):
    """One element of nft's JSON list; those that are no counters leave it empty."""

    counter: _Counter | None = None


class _Listing(msgspec.Struct):
    """What `nft -j list` prints."""

    nftables: list[_Item]
