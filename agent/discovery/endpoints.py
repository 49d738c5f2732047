"""From "HOST:PORT" texts to addresses; names are resolved anew at each call. Used by `node.py`."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from ipaddress import ip_address

from agent import endpoint
from agent.errors import UsageError

log = logging.getLogger(__name__)

# A resolver that is silent for longer will not help a start; the next try asks again.
RESOLVE_S = 2.0


async def resolve(endpoints: Sequence[str]) -> list[tuple[str, int]]:
    """Return the IP addresses and ports of all endpoints, each once; what fails is logged."""
    found = await asyncio.gather(*map(_resolve_one, endpoints))
    return list(dict.fromkeys(address for addresses in found for address in addresses))


async def _resolve_one(text: str) -> list[tuple[str, int]]:
    try:
        host, port = endpoint.split(text)
    except UsageError:
        log.warning("discovery.endpoint_malformed endpoint=%r", text)
        return []
    try:
        return [(str(ip_address(host)), port)]
    except ValueError:
        pass  # a name, then
    try:
        async with asyncio.timeout(RESOLVE_S):
            infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        log.warning("discovery.name_unresolved host=%s error=%s", host, error)
        return []
    return [(str(info[4][0]).partition("%")[0], port) for info in infos]
