"""From "HOST:PORT" texts to addresses; names are resolved anew at each call. Used by `node.py`."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from ipaddress import ip_address

log = logging.getLogger(__name__)

# A resolver that is silent for longer will not help a start; the next try asks again.
RESOLVE_S = 2.0


def split(endpoint: str) -> tuple[str, int] | None:
    """Return host and port of "HOST:PORT" or "[IPv6]:PORT", or None for anything else."""
    host, colon, digits = endpoint.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not colon or not host or not digits.isascii() or not digits.isdigit():
        return None
    port = int(digits) if len(digits) <= 5 else 0
    return (host, port) if 0 < port < 65536 else None


async def resolve(endpoints: Sequence[str]) -> list[tuple[str, int]]:
    """Return the IP addresses and ports of all endpoints, each once; what fails is logged."""
    found = await asyncio.gather(*map(_resolve_one, endpoints))
    return list(dict.fromkeys(address for addresses in found for address in addresses))


async def _resolve_one(endpoint: str) -> list[tuple[str, int]]:
    parts = split(endpoint)
    if parts is None:
        log.warning("discovery.endpoint_malformed endpoint=%r", endpoint)
        return []
    host, port = parts
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
