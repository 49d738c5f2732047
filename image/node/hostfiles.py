"""What covey.toml becomes on the machine: small files that the services read. A core."""

from __future__ import annotations

import shlex

import msgspec

from agent.membership import naming
from image.node.settings import Settings, StaticAddress

HOSTNAME, NETWORK, WISH, NOTES = "hostname", "network", "wish", "notes"


def of(settings: Settings, mac: str) -> dict[str, bytes]:
    """Return the files by their names; `mac` (six bytes in hex with colons) names the nameless.

    `hostname` has a line, `network` words for a shell, and `wish` what the agent joins with, which
    is a secret; it is empty where no ticket is set.
    """
    name = settings.name or naming.name_from_hostname(f"covey-{mac.replace(':', '')[-6:]}")
    wish = b""
    if settings.ticket:
        wish = msgspec.json.encode({"ticket": settings.ticket, "name": name}) + b"\n"
    return {
        HOSTNAME: name.encode() + b"\n",
        NETWORK: _network(settings.address).encode(),
        WISH: wish,
    }


def _network(own: StaticAddress | None) -> str:
    """Return the address by hand as assignments of /usr/lib/covey/network; "" for DHCP."""
    if own is None:
        return ""
    words = {
        "ADDRESS": str(own.address),
        "GATEWAY": str(own.gateway or ""),
        "DNS": " ".join(map(str, own.dns)),
        "INTERFACE": own.interface,
    }
    return "".join(f"{key}={shlex.quote(value)}\n" for key, value in words.items())
