"""UPnP's discovery on the wire (SSDP): the search, and what a gateway answered. A core.

Used by `igd.py`. We search ourselves instead of by miniupnpc, which would fetch descriptions from
whatever address any machine on the LAN names: only a description on the gateway itself counts.
"""

from __future__ import annotations

import re

PORT, GROUP = 1900, "239.255.255.250"
_LONGEST = 2048
_LONGEST_URL = 256
_WANTED = "urn:schemas-upnp-org:device:InternetGatewayDevice:"
_STATUS = re.compile(rb"HTTP/1\.[01] 200\b")


def searches() -> list[bytes]:
    """Return the datagrams that ask for gateways of both versions of the standard."""
    return [
        (
            f"M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}:{PORT}\r\n"
            f'MAN: "ssdp:discover"\r\nMX: 1\r\nST: {_WANTED}{version}\r\n\r\n'
        ).encode()
        for version in (1, 2)
    ]


def description_url(data: bytes, gateway: str) -> str | None:
    """Return where the gateway's description is; None if this is no answer of the gateway's.

    The caller has checked that the datagram came from the gateway.
    """
    if len(data) > _LONGEST or not _STATUS.match(data):
        return None
    headers: dict[str, str] = {}
    for line in data.decode("ascii", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    if not headers.get("st", "").startswith(_WANTED):
        return None
    url = headers.get("location", "")
    return url if is_on(url, gateway) else None


def is_on(url: str, gateway: str) -> bool:
    """Say whether this is a plain http URL on the gateway's own address.

    Written out in full, so that no two readers of URLs can see two different hosts in it.
    """
    if len(url) > _LONGEST_URL:
        return False
    return (
        re.fullmatch(rf"http://{re.escape(gateway)}(:[1-9][0-9]{{0,4}})?/[!-~]*", url) is not None
    )
