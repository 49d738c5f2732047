"""Who has a ticket and no address: find the members on the LAN, without saying anything.

A shell. It asks who is there and listens; an outsider learns that somebody looks for some
`_covey._udp.local`. Used by enrolment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from agent.lan.announcement import AnnouncementSeal
from agent.lan.interfaces import LOOPBACK
from agent.lan.peers import LanPeer, PeerBook
from agent.lan.rhythm import Rhythm, Step
from agent.lan.watch import LanWatch
from agent.membership.networkkeys import NetworkKeys

# How often it asks again; a person waits for this.
_ASK_INTERVAL_S = 5.0


async def find(
    mesh_id: bytes,
    network_key: bytes,
    *,
    timeout_s: float,
    excluded_interfaces: Sequence[str] = (),
    interfaces: Sequence[str] | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[LanPeer]:
    """Yield members of the mesh as they are found on the LAN, until `timeout_s` is over.

    A member comes again when its addresses have changed. Who has enough leaves the loop, under
    `contextlib.aclosing`, so that the sockets close at once. Raises EnvironmentFault at the end
    when there was no way to ask: no network interface, or none that takes multicast.
    """
    news: asyncio.Queue[LanPeer] = asyncio.Queue()
    watch = LanWatch(
        PeerBook(AnnouncementSeal(mesh_id, NetworkKeys.single(network_key)), None,
                 loopback=LOOPBACK in (interfaces or ())),
        Rhythm(_ASK_INTERVAL_S, Step.ASK_DIRECTLY | Step.ASK_GROUP),
        news=news.put_nowait, announce=None, asked=None, on_fault=None,
        excluded=excluded_interfaces, only=interfaces, clock=clock,
    )  # fmt: skip
    until = asyncio.get_running_loop().time() + timeout_s
    try:
        await watch.start()
        while True:
            try:
                async with asyncio.timeout_at(until):
                    peer = await news.get()
            except TimeoutError:
                break
            yield peer
        if not watch.links and watch.fault is not None:
            raise watch.fault
    finally:
        await watch.stop()
