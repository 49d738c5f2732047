"""What we use of pyroute2, without the rest of it: half its time to import, and 6 MB."""

from __future__ import annotations

from agent.hollow import hollow

hollow("pyroute2")

from pyroute2.iproute import IPRoute  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkError  # noqa: E402
from pyroute2.netlink.generic.wireguard import WireGuard  # noqa: E402

__all__ = ["IPRoute", "NetlinkError", "WireGuard"]
