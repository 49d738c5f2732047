"""Forwards pairs in the kernel where this machine allows it, and else in this process. A shell.

Every pair is open in `userspace.py`, which finds the seats and carries datagrams from the first one
on. When both seats are known, of one family, and the kernel may forward, the pair's rules are put
into our nftables table (`ruleset.py`) and its datagrams reach this process no more; when they go,
by whatever way, they come here again. So nothing is ever lost between the two.

The operator's forwarding switches are read and never written. `reason` says why pairs are not in
the kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.acl.firewall import Run, run_nft
from agent.errors import EnvironmentFault
from agent.overlay.device import check_name
from agent.relay import ruleset
from agent.relay.allocation import Allocation
from agent.relay.door import Door
from agent.relay.pairs import Counts, Pair, Seat
from agent.relay.ruleset import Route
from agent.relay.userspace import UserspaceForwarder
from agent.relay.wire import PairSeal
from agent.unreadable import UNREADABLE

_log = logging.getLogger(__name__)

_SWITCHES = Path("/proc/sys/net")
_SWITCH_HINT = (
    "Set the sysctl net.ipv4.ip_forward to 1, and net.ipv6.conf.all.forwarding if it relays IPv6."
)
# nft fails for lack of a program or capability, which a person has to give.
RETRY_S = 30.0
# Elements of the table last ELEMENT_S; written anew this often, two writes may fail.
REWRITE_S = ruleset.ELEMENT_S / 3
# How often the operator's switches are looked at.
LOOK_S = 10.0
# That another table drops what is forwarded is seen by so many packets that came while none went.
# WireGuard sends one in 5 s when it gets no answer.
BLOCKED_PACKETS = 3
BLOCKED_S = 600.0

_SWITCHED_OFF = "the kernel's forwarding is switched off in the settings"

Switches = Callable[[Seat], str]


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


class Forwarding:
    """Both forwarders. One call at a time, but `counts`; `run` and `switches` are for tests."""

    def __init__(
        self,
        interface: str,
        ports: range,
        on_seat: Callable[[bytes, int, Seat], None],
        *,
        kernel: bool = True,
        run: Run = run_nft,
        switches: Switches | None = None,
    ) -> None:
        """`kernel`: whether the kernel may be used at all."""
        check_name(interface)
        self._interface = interface
        self._ports = ports
        self._kernel = kernel
        self._run = run
        self._switches = switches or forwarding_off
        self._userspace = UserspaceForwarder(on_seat)
        self._routes: tuple[Route, ...] = ()
        self._table = False
        self._fault: EnvironmentFault | None = None
        self._retry_at = 0.0
        self._written_at = 0.0
        self._looked_at: dict[str, tuple[float, str]] = {}
        self._blocked_until: dict[bytes, float] = {}
        self._past: dict[bytes, tuple[int, int]] = {}
        self._read: dict[bytes, tuple[int, int]] = {}
        self._stuck: dict[bytes, tuple[int, int]] = {}
        self.fault = None if kernel else EnvironmentFault(_SWITCHED_OFF)
        """Why some or all pairs are not in the kernel."""

    @property
    def reason(self) -> str:
        """That in a clause; empty where the kernel forwards."""
        return self.fault.message if self.fault is not None else ""

    async def start(self) -> None:
        """Start; the table of an agent that was killed is removed. Never fails for lack of nft."""
        self._userspace.start()
        if self._kernel:
            await self._make_table(0.0)

    async def stop(self) -> None:
        """Close all ports and remove the table."""
        await self._userspace.stop()
        self._routes = ()
        if self._table:
            self._table = False
            try:
                await self._nft(["-f", "-"], ruleset.removal(self._interface))
            except EnvironmentFault as fault:
                _log.warning("relay table not removed: %s", fault.line())

    async def add(self, pair: Pair, doors: tuple[Door, Door]) -> None:
        """Open a pair's ports. Raises PortTaken or EnvironmentFault."""
        await self._userspace.add(pair, doors)

    async def remove(self, identity: bytes) -> None:
        """Close a pair's ports; `settle` takes it out of the kernel."""
        await self._userspace.remove(identity)

    async def place(self, identity: bytes, side: int, seat: Seat) -> None:
        """Give a side a seat that was proved otherwise."""
        await self._userspace.place(identity, side, seat)

    def set_seal(self, identity: bytes, side: int, seal: PairSeal) -> None:
        """Let a side's door use another seal from now on."""
        self._userspace.set_seal(identity, side, seal)

    def in_kernel(self, identity: bytes) -> bool:
        """Say whether the kernel forwards a pair."""
        return any(route.pair.id == identity for route in self._routes)

    async def settle(self, allocations: list[Allocation], now: float) -> None:
        """Put into the kernel what can be there, take out what cannot. `now`: any one clock."""
        if not self._kernel:
            return
        if not self._table and now >= self._retry_at:
            await self._make_table(now)
        wanted = self._wanted(allocations, now)
        kept = {each.id for each in allocations}
        for table in (self._past, self._read, self._stuck, self._blocked_until):
            for identity in table.keys() - kept:
                del table[identity]
        due = self._routes and now >= self._written_at + REWRITE_S
        if wanted == self._routes and not due:
            return
        if not self._table:
            return
        try:
            await self._write(wanted, now)
        except EnvironmentFault as first:
            # Somebody may have removed our table (`nft flush ruleset`): make it once more.
            _log.warning("relay table written anew: %s", first.message)
            if await self._make_table(now):
                try:
                    await self._write(wanted, now)
                except EnvironmentFault as fault:
                    self._give_up(fault, now)

    async def counts(self, now: float) -> Counts:
        """Return what each side of each pair has sent so far, by either way."""
        total = await self._userspace.counts()
        if self._routes:
            try:
                await self._read_counters(now)
            except EnvironmentFault as fault:
                _log.warning("relay counters cannot be read: %s", fault.line())
        for identity, (first, second) in total.items():
            for more in (self._past.get(identity, (0, 0)), self._read.get(identity, (0, 0))):
                first, second = first + more[0], second + more[1]
            total[identity] = (first, second)
        return total

    # ------------------------------------------------------------------ inside

    def _wanted(self, allocations: list[Allocation], now: float) -> tuple[Route, ...]:
        """Return the pairs that the kernel can forward; the last hindrance becomes the reason."""
        wanted: list[Route] = []
        fault = self._fault if not self._table else None
        for each in allocations:
            first, second = each.seats
            if first is None or second is None:
                continue
            if first.loopback or second.loopback or first.family != second.family:
                continue  # a tunnel, or IPv4 to IPv6: not what nftables does
            hindrance: EnvironmentFault | None = None
            if off := self._off(first, now) or self._off(second, now):
                hindrance = EnvironmentFault(off, hint=_SWITCH_HINT)
            if now < self._blocked_until.get(each.id, 0.0):
                hindrance = EnvironmentFault(
                    "another packet filter of this machine drops what is forwarded",
                    hint="Allow forwarded UDP from and to the ports of network.relay_ports there.",
                )
            if hindrance is not None:
                fault = hindrance
                continue
            wanted.append(Route(each.pair, (first, second)))
        before, self.fault = self.reason, fault
        if self.reason != before:
            said = f"in user space: {self.reason}" if self.reason else "by nftables"
            _log.info("relay forwarding %s", said)
        return tuple(wanted)

    def _off(self, seat: Seat, now: float) -> str:
        key = f"{seat.family} {seat.interface}"
        looked, found = self._looked_at.get(key, (-LOOK_S, ""))
        if now >= looked + LOOK_S:
            found = self._switches(seat)
            self._looked_at[key] = (now, found)
        return found

    async def _make_table(self, now: float) -> bool:
        self._forget_read()
        self._routes, self._table = (), False
        try:
            await self._nft(["-f", "-"], ruleset.base(self._interface, self._ports))
        except EnvironmentFault as fault:
            self._give_up(fault, now)
            return False
        self._table, self._fault = True, None
        return True

    def _give_up(self, fault: EnvironmentFault, now: float) -> None:
        self._table, self._routes = False, ()
        self._retry_at = now + RETRY_S
        known, self._fault, self.fault = self._fault, fault, fault
        if known is None or known.message != fault.message:
            _log.warning("relay forwarding in user space: %s", fault.line())

    async def _write(self, wanted: tuple[Route, ...], now: float) -> None:
        if self._routes:
            await self._read_counters(now)
        text = ruleset.change(self._interface, self._routes, wanted)
        await self._nft(["-f", "-"], text)
        gone = {r.pair.id for r in self._routes} - {r.pair.id for r in wanted}
        self._forget_read(gone)
        self._routes, self._written_at = wanted, now

    def _forget_read(self, gone: set[bytes] | None = None) -> None:
        """Keep as past what counters said that begin at nothing, or are no more."""
        for identity in list(self._read) if gone is None else gone & self._read.keys():
            first, second = self._read.pop(identity)
            past = self._past.get(identity, (0, 0))
            self._past[identity] = (past[0] + first, past[1] + second)
            self._stuck.pop(identity, None)

    async def _read_counters(self, now: float) -> None:
        table = ruleset.table_name(self._interface)
        raw = await self._nft(["-j", "list", "counters", "table", "inet", table], "")
        try:
            listing = msgspec.json.decode(raw, type=_Listing)
        except UNREADABLE as error:
            raise EnvironmentFault(f"nft printed what cannot be read: {error}") from None
        counters = {
            item.counter.name: (item.counter.packets, item.counter.bytes)
            for item in listing.nftables
            if item.counter is not None
        }
        for route in self._routes:
            identity = route.pair.id
            self._read[identity], (came, went) = ruleset.counted(counters, route)
            before = self._stuck.get(identity, (0, 0))
            if went != before[1]:
                self._stuck[identity] = (came, went)
            elif came >= before[0] + BLOCKED_PACKETS:
                self._blocked_until[identity] = now + BLOCKED_S

    async def _nft(self, arguments: list[str], stdin: str) -> bytes:
        done = await self._run(arguments, stdin.encode())
        if done.code == 0:
            return done.stdout
        said = done.stderr.decode(errors="replace").strip()
        if "Operation not permitted" in said:
            raise EnvironmentFault(
                "nft may not forward for this relay: that needs CAP_NET_ADMIN",
                hint="Give the agent CAP_NET_ADMIN; until then it forwards in user space.",
            )
        reason = said.splitlines()[0] if said else f"exit code {done.code}"
        raise EnvironmentFault(
            f"nft failed: {reason}", hint="This kernel may lack nftables: see `dmesg`."
        )


def forwarding_off(seat: Seat) -> str:
    """Return what keeps the kernel from forwarding what comes in for a seat, as a clause; or ""."""
    if seat.family == 4:
        names = [f"ipv4/conf/{seat.interface}/forwarding"]
    else:
        # The interface's own switch is newer than most kernels, and enough where it is there.
        names = ["ipv6/conf/all/forwarding", f"ipv6/conf/{seat.interface}/force_forwarding"]
    for name in names:
        try:
            if (_SWITCHES / name).read_text().strip() != "0":
                return ""
        except OSError:
            continue
    return f"forwarding is off (net.{names[0].replace('/', '.')} = 0)"
