"""Which Host headers are answered. A core.

A web site may have its own name resolve to 127.0.0.1 ("DNS rebinding"); its pages, open in a
browser on this machine, would then read ours as their own. Their requests still say its name, so
names are answered that nobody else can have lead here: addresses, localhost, and the operator's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from ipaddress import ip_address

_NAME = re.compile(r"([A-Za-z0-9._-]+)(:[0-9]*)?")


def answered(given: Sequence[str], names: Collection[str]) -> bool:
    """Say whether a request with these Host headers is answered; `names` are in lower case."""
    if len(given) != 1:
        return False
    host = _host(given[0].strip())
    return host == "localhost" or host.endswith(".localhost") or host in names or _address(host)


def _host(text: str) -> str:
    """Return the host of HOST or HOST:PORT, without brackets, in lower case."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        fit = bracket and (not port or port.startswith(":"))
        return host.lower() if fit and ":" in host else ""
    name = _NAME.fullmatch(text)
    return name[1].lower().removesuffix(".") if name else ""


def _address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
