"""Word of a changed underlay: an address or a route came or went, not on our own interface.

A shell. The path engine collects its candidates anew then, and `RawPort` forgets its sources. What
only looks like a change (a lease or an IPv6 prefix renewed, which happens all day) is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable

import ifaddr

from agent import rtnetlink
from agent.errors import EnvironmentFault
from agent.overlay.routes import METRIC

_log = logging.getLogger(__name__)

# A network that comes up brings address, routes and IPv6 one after the other. Told after so long a
# pause, but not later than so long after the first.
SETTLE_S, SETTLE_MAX_S = 0.3, 1.5
# linux/rtnetlink.h and linux/if_addr.h.
_NEW_ADDRESS, _DELETED_ADDRESS, _NEW_ROUTE, _DELETED_ROUTE = 20, 21, 24, 25
_ADDRESS = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, interface
_ROUTE = struct.Struct("=BBBBBBBBI")  # …, table (4), …, type (7), flags
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_TENTATIVE = 0x40
_RTA_OUT_INTERFACE, _RTA_PRIORITY = 4, 6
_TABLE_LOCAL, _UNICAST, _CLONED = 255, 1, 0x200
_GROUPS = (
    rtnetlink.IPV4_ADDRESSES
    | rtnetlink.IPV6_ADDRESSES
    | rtnetlink.IPV4_ROUTES
    | rtnetlink.IPV6_ROUTES
)

Changed = Callable[[], Awaitable[None]]


class UnderlayChanges:
    """Awaits `changed` after each change, one call at a time; `interface` is the overlay's own."""

    def __init__(
        self,
        interface: str,
        changed: Changed,
        *,
        settle_s: float = SETTLE_S,
        settle_max_s: float = SETTLE_MAX_S,
    ) -> None:
        self._interface = interface
        self._changed = changed
        self._settle_s, self._settle_max_s = settle_s, settle_max_s
        self._events: rtnetlink.RouteEvents | None = None
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._news_at = float("-inf")
        self._own: set[int] = set()
        self._known: set[tuple[int, bytes]] = set()

    def start(self) -> None:
        """Begin to listen. Raises EnvironmentFault where the system does not tell."""
        if self._events is not None:
            raise ValueError("changes are listened to already")
        try:
            events = rtnetlink.RouteEvents(_GROUPS)
        except OSError as error:
            raise EnvironmentFault(
                f"the kernel does not tell of changed networks: {error.strerror}",
                hint="Restart the agent after a change of network.",
            ) from error
        self._events = events
        self._look()
        loop = asyncio.get_running_loop()
        loop.add_reader(events, self._readable, events)
        self._task = loop.create_task(self._tell(), name="underlay-changes")

    async def stop(self) -> None:
        """End, `changed` too if it runs; may be called twice."""
        events, self._events = self._events, None
        if events is not None:
            asyncio.get_running_loop().remove_reader(events)
            events.close()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _tell(self) -> None:
        while True:
            await self._news.wait()
            first = time.monotonic()
            while (quiet_at := self._news_at + self._settle_s) > (now := time.monotonic()):
                if now - first >= self._settle_max_s:
                    break
                await asyncio.sleep(min(quiet_at, first + self._settle_max_s) - now)
            self._news.clear()
            _log.info("underlay changed")
            try:
                await self._changed()
            except Exception:
                _log.exception("following a changed underlay failed")

    def _readable(self, events: rtnetlink.RouteEvents) -> None:
        try:
            came = events.read()
        except OSError as error:
            _log.warning("news of changed networks cannot be read: %s", error)
            return
        if came is None:  # some were lost: look for ourselves, and take it for a change
            self._look()
            news = True
        else:
            self._find_own()
            # Every message is looked at, for what it says of the addresses there are.
            judged = [self._is_news(m) for part in came for m in rtnetlink.messages(part)]
            news = any(judged)
        if news:
            self._news_at = time.monotonic()
            self._news.set()

    def _look(self) -> None:
        """Learn which addresses there are."""
        self._find_own()
        self._known.clear()
        for adapter in ifaddr.get_adapters():
            for entry in adapter.ips:
                ipv4 = isinstance(entry.ip, str)
                family = socket.AF_INET if ipv4 else socket.AF_INET6
                text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
                packed = socket.inet_pton(family, text.partition("%")[0])
                self._known.add((adapter.index or 0, packed))

    def _find_own(self) -> None:
        """Learn our interface's number; one that it had is remembered, for its last events."""
        with contextlib.suppress(OSError):  # it is not there now
            self._own.add(socket.if_nametoindex(self._interface))

    def _is_news(self, message: rtnetlink.Message) -> bool:
        if message.kind in {_NEW_ADDRESS, _DELETED_ADDRESS}:
            return self._is_address_news(message)
        if message.kind in {_NEW_ROUTE, _DELETED_ROUTE} and len(message.body) >= _ROUTE.size:
            _, _, _, _, table, _, _, kind, flags = _ROUTE.unpack_from(message.body)
            if table == _TABLE_LOCAL or kind != _UNICAST or flags & _CLONED:
                return False  # the kernel's own, for each address; or what it learned on the way
            found = rtnetlink.attributes(message.body[_ROUTE.size :])
            out, metric = (
                int.from_bytes(found.get(each, b""), sys.byteorder)
                for each in (_RTA_OUT_INTERFACE, _RTA_PRIORITY)
            )
            # Those of other nodes on this machine lead over their overlay.
            return out not in self._own and metric != METRIC
        return False

    def _is_address_news(self, message: rtnetlink.Message) -> bool:
        if len(message.body) < _ADDRESS.size:
            return False
        _, _, flags, _, index = _ADDRESS.unpack_from(message.body)
        found = rtnetlink.attributes(message.body[_ADDRESS.size :])
        address = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
        if address is None or index in self._own:
            return False
        key = (index, address)
        if message.kind == _DELETED_ADDRESS:
            self._known.discard(key)
            return True
        if flags & _IFA_TENTATIVE or key in self._known:
            return False  # not to be used yet (it will be told again), or only prolonged
        self._known.add(key)
        return True
