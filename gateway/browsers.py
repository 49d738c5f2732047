"""Whether another web site's page makes a request, from a browser on a machine that may. A core.

A browser sends to 127.0.0.1 what any page has it send. Where no key is asked for, that page would
have the mesh's models work; and if its name was made to lead here once its page is open ("DNS
rebinding"), it would read the answers too. Used by `app.py` for requests without a key.

| a browser says | then |
|---|---|
| another site's page asks (`Sec-Fetch-Site`, else `Origin`) | foreign, unless it only looks |
| the page's own server is asked, by a name of the public DNS | foreign: the name may be anybody's |
| the same by an address, localhost, or a name that only a house can give | not foreign |
| nothing: it is no browser | not foreign |

Pages of programs and extensions (`tauri://`, `vscode-webview://`, …) are no web site's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address

# RFC 6762, 6761, 8375 and what ICANN keeps from being sold.
_HOUSE = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".home", ".test")
_ORIGIN = re.compile(r"https?://([^/]*)|null")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(:\d*)?")


def foreign(headers: Mapping[str, str], *, changes: bool, shows: bool) -> bool:
    """Say whether a page of somebody else's asks.

    `changes`: the request does something, as all but GET and HEAD do. `shows`: it is one of the
    dashboard's, which a browser alone would ask for.
    """
    origin = headers.get("Origin", "")
    site = _ORIGIN.fullmatch(origin)
    if changes and site is not None and not _same(headers, site[1]):
        return True
    return (site is not None or shows) and not _of_house(headers.get("Host", ""))


def _same(headers: Mapping[str, str], host: str | None) -> bool:
    said = headers.get("Sec-Fetch-Site")
    if said is not None:
        return said in ("same-origin", "none")
    return host is not None and host.lower() == headers.get("Host", "").lower()


def _of_house(host: str) -> bool:
    """Say whether nobody outside can have this name lead here."""
    found = _HOST.fullmatch(host.strip().lower())
    if found is None:
        return False
    name = found[1].strip("[]").removesuffix(".")
    if "." not in name and ":" not in name:  # localhost, or a machine of the house
        return True
    try:
        ip_address(name)
    except ValueError:
        return name.endswith(_HOUSE)
    return True
