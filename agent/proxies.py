"""The HTTP proxy that this machine's environment names, for what is fetched from outside. A shell.

`https_proxy` and `no_proxy` as curl and others read them; the appliance sets them from covey.toml.
Only https URLs go through one: http ones lead to members, and to this machine.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass


@dataclass(frozen=True)
class Proxy:
    """A proxy's URL, None where a server is asked directly, and the headers that it wants."""

    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def proxy_for(url: str) -> Proxy:
    """Return the proxy that the environment has for a URL."""
    parts = urlsplit(url)
    named = getproxies().get("https", "") if parts.scheme == "https" else ""
    if not named or proxy_bypass(parts.hostname or ""):
        return Proxy()
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    headers = {}
    if proxy.username:
        # Apart from the URL, which errors and logs repeat.
        who = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(who.encode()).decode()}"
    return Proxy(f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}", headers)
