"""UPnP at one gateway: finds it by SSDP, and has miniupnpc ask it in a child process. A shell.

Used by `service.py`. Only the default gateway is asked, and only a description on itself is read,
so no other machine on the LAN can make us fetch anything. A child is ended at its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from random import Random

import msgspec

from agent.childenv import kept
from agent.portmap import ssdp
from agent.portmap.igdchild import Order, Reply
from agent.portmap.words import (
    Alive,
    Answer,
    Gone,
    Granted,
    Kind,
    Refused,
    Released,
    Request,
    can_be_external,
)
from agent.unreadable import UNREADABLE

_log = logging.getLogger(__name__)

# An order is a few HTTP exchanges on the LAN. Slow routers take a second for each.
_DEADLINE_S = 8.0
_RELEASE_DEADLINE_S = 4.0
# A search waits MX (1 s) and a moment; it is repeated once, for datagrams get lost.
_SEARCH_WAIT_S, _SEARCHES = 1.5, 2
_SEARCH_READS = 64
_REPLY_BYTES_MAX = 4096
# Way's only waits: one order, and the one before it that it may have to stand behind.
_WAIT_S = _SEARCHES * _SEARCH_WAIT_S + _DEADLINE_S + 1.0
RELEASE_WAITS_S = (_DEADLINE_S + _RELEASE_DEADLINE_S + 1.0,)
# If another machine has our port outside, these are tried; high, where routers map nothing else.
_OTHER_PORTS, _LOWEST_PORT, _HIGHEST_PORT = 3, 20000, 59999
NO_ADDRESS = "it has no external address itself at present"


def waits(rng: Random) -> Iterator[float]:
    """Yield how long to wait for an order, once (s): HTTP repeats by itself what is lost."""
    return iter((_WAIT_S,))


def lost_state(previous: int, heard_at: float, epoch: int, now: float) -> bool:
    """UPnP tells no clock, so a restart shows only when a check finds the mapping gone."""
    return False


class Igd:
    """Carries out one request after the other; the last one's answer is told."""

    def __init__(
        self,
        local: str,
        gateway: str,
        internal_port: int,
        answered: Callable[[Answer], None],
        rng: Random,
    ) -> None:
        self._local, self._gateway, self._port = local, gateway, internal_port
        self._answered = answered
        self._ports = [internal_port] + [
            rng.randint(_LOWEST_PORT, _HIGHEST_PORT) for _ in range(_OTHER_PORTS)
        ]
        self._url: str | None = None
        self._turn = asyncio.Lock()
        self._running: tuple[Kind, asyncio.Task[None]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, request: Request) -> None:
        """Carry it out when the one before is done."""
        # What changes nothing may be broken off. What maps must end, so that it can be taken back.
        if self._running is not None and self._running[0] in {Kind.PROBE, Kind.CHECK}:
            self._running[1].cancel()
        task = asyncio.create_task(self._serve(request), name=f"upnp {request.kind.value}")
        self._running = request.kind, task
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def close(self) -> None:
        """Break off what is not done."""
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        """Wait until all children are gone."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_DEADLINE_S)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._running is not None and self._running[1] is task:
            self._running = None
        if not task.cancelled() and task.exception() is not None:
            _log.error("port mapping: UPnP failed", exc_info=task.exception())

    async def _serve(self, request: Request) -> None:
        me = asyncio.current_task()
        async with self._turn:
            answer = await self._answer(request)
        if answer is not None and self._running is not None and self._running[1] is me:
            self._answered(answer)

    async def _answer(self, request: Request) -> Answer | None:
        if request.kind is Kind.PROBE:
            self._url = await _search(self._local, self._gateway)
        if self._url is None:
            return None
        known = [request.external_port] if request.external_port else []
        if request.kind is Kind.ASK or not known:
            known += [port for port in self._ports if port not in known]
        order = Order(
            request.kind.value, self._url, self._gateway, self._local, self._port, known,
            request.lifetime_s,
        )  # fmt: skip
        limit = _RELEASE_DEADLINE_S if request.kind is Kind.RELEASE else _DEADLINE_S
        reply = await _in_child(order, limit)
        return _read(reply) if reply is not None else None


async def _search(local: str, gateway: str) -> str | None:
    """Return where the gateway's description is; None if it does not answer."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        try:
            asking.bind((local, 0))
            asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(local))
        except OSError:
            return None
        for _ in range(_SEARCHES):
            for datagram in ssdp.searches():
                # To the gateway itself as well: a firewall here lets answers to that in.
                for place in ((gateway, ssdp.PORT), (ssdp.GROUP, ssdp.PORT)):
                    with contextlib.suppress(OSError):
                        asking.sendto(datagram, place)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SEARCH_WAIT_S):
                    for _ in range(_SEARCH_READS):
                        try:
                            data, sender = await loop.sock_recvfrom(asking, 4096)
                        except ConnectionError:
                            continue  # nothing listens at the gateway; the group may
                        url = ssdp.description_url(data, gateway)
                        if url is not None and sender[0] == gateway:
                            return url
    return None


async def _in_child(order: Order, limit_s: float) -> Reply | None:
    """Return what the child said; None if it did not end well in time."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent.portmap.igdchild",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=kept(os.environ),
    )  # fmt: skip
    try:
        async with asyncio.timeout(limit_s):
            out, _ = await child.communicate(msgspec.json.encode(order))
        return msgspec.json.decode(out[:_REPLY_BYTES_MAX], type=Reply)
    except TimeoutError:
        _log.debug("port mapping: UPnP took too long gateway=%s", order.gateway)
        return None
    except UNREADABLE:
        _log.debug("port mapping: UPnP child ended code=%s", child.returncode)
        return None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def _read(reply: Reply) -> Answer:
    """Return the child's reply as the answer that it stands for."""
    try:
        usable = reply.address is None or can_be_external(reply.address)
    except ValueError:
        usable = False
    if not usable:
        return Refused(NO_ADDRESS)
    match reply.outcome:
        case "alive":
            return Alive(None, reply.address)
        case "granted":
            return Granted(reply.port, reply.lifetime_s, None, reply.address)
        case "released":
            return Released()
        case "gone":
            return Gone()
        case _:
            return Refused(reply.why)
