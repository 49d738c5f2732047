"""HOST:PORT as text: how addresses on underlay and overlay are written everywhere. A core.

IPv6 addresses stand in brackets. Nothing is resolved here.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address

from agent.errors import UsageError

_MAX_HOST_CHARACTERS = 253  # the longest DNS name
MAX_CHARACTERS = _MAX_HOST_CHARACTERS + 1 + 5  # and a colon, and the longest port
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
_HOST = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*\.?"
)
_MAX_PORT = 65535


def split(text: str, *, lowest_port: int = 1) -> tuple[str, int]:
    """Return host (no brackets) and port; raises UsageError for anything but HOST:PORT.

    `lowest_port` 0 also reads the port that stands for "any" where one listens.
    """
    host, colon, port = text.rpartition(":")
    if not colon or len(host) > _MAX_HOST_CHARACTERS:
        raise _bad(text)
    if not _PORT.fullmatch(port) or not lowest_port <= int(port) <= _MAX_PORT:
        raise _bad(text)
    if host.startswith("[") and host.endswith("]"):
        try:
            IPv6Address(host[1:-1])
        except AddressValueError:
            raise _bad(text) from None
        return host[1:-1], int(port)
    if not _HOST.fullmatch(host):
        raise _bad(text)
    return host, int(port)


def join(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets when the host is an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def with_port(address: str, port: int) -> str:
    """Return HOST:PORT for HOST or HOST:PORT; a bare IPv6 address needs no brackets."""
    if address.count(":") > 1 and not address.startswith("["):
        return join(address, port)
    if address.startswith("[") and address.endswith("]"):
        return f"{address}:{port}"
    return address if ":" in address else join(address, port)


def _bad(text: str) -> UsageError:
    return UsageError(
        f"{text[:80]!r} is not an address",
        hint="Write HOST:PORT, and an IPv6 address in brackets: [2001:db8::1]:4001.",
    )
