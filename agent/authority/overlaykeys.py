"""The network keys over the overlay, for a member that slept through a whole key change.

Its old key is heard by nobody any more, neither by discovery nor by the control plane. WireGuard
does not depend on that key: a member that others still have as a peer reaches them by it, and what
comes from its overlay address comes from itself. So members give the keys that count, over HTTP on
their overlay address alone; and a node that hears nobody asks. A shell; used by the daemon.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv6Address, ip_address

import aiohttp
from aiohttp import web

from agent import endpoint
from agent.errors import CoveyError, PeerError
from agent.membership.store import Membership

_log = logging.getLogger(__name__)

PATH = "/network-keys"
_TIMEOUT_S = 3.0
# An offer of four keys with their changes is under 2 KB.
_MAX_BYTES = 16 * 1024


def route(
    membership: Membership, answer: Callable[[], bytes], clock: Callable[[], float] = time.time
) -> web.RouteDef:
    """Return what answers PATH on the overlay: the keys for a member, nothing for anyone else."""

    async def give(request: web.Request) -> web.Response:
        asker = ip_address((request.remote or "::").partition("%")[0])
        if asker not in {member.certificate.ipv6 for member in membership.live_members(clock())}:
            raise web.HTTPForbidden(text="this address is no member's\n")
        return web.Response(body=answer(), content_type="application/octet-stream")

    return web.get(PATH, give)


async def fetch(host: IPv6Address, port: int) -> bytes:
    """Return what the member at an overlay address answers; raises PeerError."""
    url = f"http://{endpoint.join(str(host), port)}{PATH}"
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            if response.status != web.HTTPOk.status_code:
                raise PeerError(f"{url} answered {response.status}")
            return await response.content.read(_MAX_BYTES)
    except (TimeoutError, aiohttp.ClientError) as error:
        raise PeerError(f"{url} did not give the network keys: {error!r}") from None


async def fetch_from_any(
    hosts: Iterable[IPv6Address], port: int, take: Callable[[bytes], Awaitable[bool]]
) -> bool:
    """Ask one after another until one gives a new key, as `take` says; return whether one did."""
    for host in hosts:
        try:
            if await take(await fetch(host, port)):
                return True
        except CoveyError as error:
            _log.info("network_key.not_given host=%s: %s", host, error.message)
    return False
