"""The links of this machine kept open as interfaces come and go, and what they carry sorted.

A shell. Used by `beacon.py` and `newcomer.py`, which say what to do with news and questions. It
asks; it never answers or announces by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from agent.errors import EnvironmentFault
from agent.lan import dns
from agent.lan.interfaces import InterfaceChanges, LanInterface, lan_interfaces
from agent.lan.links import Link
from agent.lan.peers import Allowance, LanPeer, PeerBook, Refusal
from agent.lan.rhythm import Rhythm, Step

_log = logging.getLogger(__name__)

# Netlink tells of changes at once; this is for systems without it, and for a port that gets free.
LOOK_INTERVAL_S = 15.0
# An interface that comes up brings several changes within a moment.
SETTLE_S = 0.1
# Packets about our service that are read in a second: at most 3 % of a core, whatever is in them.
# Thirty machines that start together send each other some 400.
PACKETS_PER_S = 200.0
PACKETS_BURST = 800.0
# A wrong clock is worth a line, not one for each announcement.
_CLOCK_LINE_INTERVAL_S = 3600.0
# Lines about nodes; only a holder of the network key can cause more.
_LINES_PER_S, _LINES_BURST = 1.0, 100.0
# A task that is cancelled ends at once.
_STOP_S = 1.0
_AT_ONCE = 0.0

Asked = Callable[[Link, dns.Query, tuple[Any, ...]], None]


class LanWatch:
    """Open links, one for each interface and address family, and a book of who is there."""

    def __init__(
        self,
        book: PeerBook,
        rhythm: Rhythm,
        *,
        news: Callable[[LanPeer], None],
        announce: Callable[[Iterable[Link]], None] | None,
        asked: Asked | None,
        on_fault: Callable[[EnvironmentFault | None], None] | None,
        excluded: Sequence[str],
        only: Sequence[str] | None,
        clock: Callable[[], float],
    ) -> None:
        self.book = book
        self.fault: EnvironmentFault | None = None
        self._rhythm = rhythm
        self._news = news
        self._announce = announce
        self._asked = asked
        self._on_fault = on_fault
        self._excluded, self._only = tuple(excluded), only
        self._clock = clock
        self._links: dict[tuple[LanInterface, socket.AddressFamily], Link] = {}
        self._changes = InterfaceChanges(self.look_again)
        self._changed = asyncio.Event()
        self._look_at = _AT_ONCE
        self._packets = Allowance(PACKETS_PER_S, PACKETS_BURST)
        self._lines = Allowance(_LINES_PER_S, _LINES_BURST)
        self._task: asyncio.Task[None] | None = None
        self._clock_line_at = float("-inf")

    @property
    def links(self) -> list[Link]:
        """The open links."""
        return list(self._links.values())

    def look_again(self) -> None:
        """Look for interfaces soon."""
        self._look_at = _AT_ONCE
        self._changed.set()

    def begin_anew(self) -> None:
        """Announce and ask at once, as after a change."""
        self._rhythm.restart(time.monotonic())
        self._changed.set()

    async def start(self) -> None:
        """Open what can be opened, announce and ask for the first time, and keep it so."""
        try:
            self._changes.start()
            await self._look()
            self._act()
        except BaseException:
            await self.stop()
            raise
        self._task = asyncio.create_task(self._follow(), name="lan")
        self._task.add_done_callback(_log_unless_cancelled)

    async def stop(self, goodbye: Callable[[Iterable[Link]], None] | None = None) -> None:
        """End, with a last word on each link; may be called twice, or before `start`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=_STOP_S)
        self._changes.stop()
        if goodbye is not None:
            goodbye(self.links)
        for link in self.links:
            link.close()
        self._links.clear()
        await asyncio.sleep(0)  # the transports close in the loop's next turn

    def peers(self) -> list[LanPeer]:
        """Return the nodes that are on the LAN now, the one heard last first."""
        for peer in self.book.expire(self._clock()):
            self._log_peer("gone", peer)
        return self.book.peers()

    async def _follow(self) -> None:
        while True:
            pause = min(self._rhythm.next_at, self._look_at) - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pause)):
                    await self._changed.wait()
            if self._look_at == _AT_ONCE:
                await asyncio.sleep(SETTLE_S)
            self._changed.clear()
            if time.monotonic() >= self._look_at:
                await self._look()
            self._act()

    async def _look(self) -> None:
        """Open links to what is new, close those to what is gone, and say what is wrong."""
        self._look_at = time.monotonic() + LOOK_INTERVAL_S
        self.peers()
        try:
            found = await asyncio.to_thread(lan_interfaces, self._excluded, self._only)
        except OSError as error:
            self._judge(error)
            return
        wanted = {
            (interface, family)
            for interface in found
            for family, addresses in (
                (socket.AF_INET, interface.ipv4),
                (socket.AF_INET6, interface.ipv6),
            )
            if addresses
        }
        for key, link in list(self._links.items()):
            # One that could not listen gets a new try: the port may be free by now.
            if key not in wanted or not link.listening:
                del self._links[key]
                link.close()
        why = await self._open_links(sorted(wanted - self._links.keys(), key=_order))
        self._judge(why)

    async def _open_links(
        self, wanted: Iterable[tuple[LanInterface, socket.AddressFamily]]
    ) -> OSError | None:
        why: OSError | None = None
        for interface, family in wanted:
            link = Link(interface, family)
            try:
                await link.open(self._received)
            except OSError as error:
                why = error
                continue
            self._links[interface, family] = link
            self._rhythm.restart(time.monotonic())
            level = logging.INFO if link.listening else logging.DEBUG
            _log.log(level, "lan link interface=%s family=%s", interface.name, family.name)
        return why

    def _judge(self, error: OSError | None) -> None:
        """Say what keeps this node from being found, or that nothing does any more."""
        before, self.fault = self.fault, self._why_silent(error)
        if str(before) != str(self.fault) and self._on_fault is not None:
            self._on_fault(self.fault)

    def _why_silent(self, error: OSError | None) -> EnvironmentFault | None:
        if any(link.listening for link in self._links.values()):
            return None
        why = next((link.fault for link in self._links.values() if link.fault), error)
        if why is not None:
            return EnvironmentFault(
                f"multicast DNS on UDP port {dns.PORT} does not work here: {why.strerror or why}",
                hint="Let other mDNS programs share the port "
                "(avahi: disallow-other-stacks=no), or set network.mdns = false.",
            )
        return EnvironmentFault(
            "no network interface here is up and takes multicast",
            hint="Members on the same LAN are found as soon as one comes up.",
        )

    def _act(self) -> None:
        steps = self._rhythm.due(time.monotonic())
        if Step.ANNOUNCE in steps and self._announce is not None:
            self._announce(self.links)
        for link in self._links.values():
            if Step.ASK_DIRECTLY in steps:
                link.ask(directly=True)
            if Step.ASK_GROUP in steps:
                link.ask(directly=False)

    def _received(self, link: Link, packet: bytes, sender: tuple[Any, ...]) -> None:
        """Take one packet, whoever sent it. Whatever is in it, nothing is raised into the loop."""
        if dns.MARK not in packet or not self._packets.take(time.monotonic()):
            return
        if not link.interface.near(sender[0]):
            return
        match dns.read(packet):
            case dns.Answer(texts) if sender[1] == dns.PORT:
                for text in texts:
                    self._take(text)
            case dns.Query() as query if self._asked is not None:
                self._asked(link, query, sender)

    def _take(self, text: bytes) -> None:
        match self.book.take(text, self._clock()):
            case LanPeer() as peer:
                self._log_peer("found", peer)
                self._news(peer)
            case Refusal.CLOCK:
                self._tell_of_clock()

    def _log_peer(self, what: str, peer: LanPeer) -> None:
        if self._lines.take(time.monotonic()):
            addresses = ",".join(peer.addresses)
            _log.info("lan peer %s node=%s addresses=%s", what, peer.node, addresses)

    def _tell_of_clock(self) -> None:
        now = time.monotonic()
        if now - self._clock_line_at >= _CLOCK_LINE_INTERVAL_S:
            self._clock_line_at = now
            _log.warning(
                "a LAN announcement of this mesh is minutes off: check this machine's clock and "
                "the others'"
            )


def _log_unless_cancelled(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("watching the LAN has ended", exc_info=task.exception())


def _order(key: tuple[LanInterface, socket.AddressFamily]) -> tuple[int, int]:
    return (key[0].index, int(key[1]))
