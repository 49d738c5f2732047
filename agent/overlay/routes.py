"""How large a packet to each peer may be, as routes on the overlay's interface. A core.

    network              its route's MTU
    -------              ---------------
    the mesh's           1280: nothing larger is sent to whom nothing larger was proved to reach
    a peer's addresses   what its path carries, once that is measured and more than 1280

The interface's own MTU is only the most that any of them may have. Who computes what a path
carries is `agent/paths/mtu.py`; `links.py` makes the routes. Their metric is ours alone, and they
are added beside others and deleted by it and by the interface, so no route of an operator is ever
replaced, and one for the same addresses counts before ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.overlay.device import DEFAULT_MTU, Network

# Larger than what `ip route` gives by itself (0 for IPv4, 1024 for IPv6): any other route wins.
METRIC = 51820
# WireGuard pads what it seals to a multiple of this (`whitepaper` §5.4.6), but never past the MTU:
# the kernel's takes that of the route, wireguard-go that of the interface.
PADDING_BYTES = 16


@dataclass(frozen=True)
class Change:
    """Give the network a route with this MTU in place of the one it has; None: just remove that."""

    network: Network
    mtu: int | None
    present: bool
    """Whether the network has a route of ours."""


def fitting(path_mtu: int, interface_mtu: int) -> int:
    """Return the MTU of a route to a peer whose path carries tunnel packets of `path_mtu` bytes.

    A packet of the route's MTU must still fit once it is padded. 0 is a path not measured.
    """
    if path_mtu >= interface_mtu:
        return interface_mtu
    return max(DEFAULT_MTU, path_mtu - path_mtu % PADDING_BYTES)


def wanted(
    peers: Iterable[tuple[tuple[Network, ...], int]], interface_mtu: int
) -> dict[Network, int]:
    """Return the routes for peers, each with its addresses and what its path carries."""
    found: dict[Network, int] = {}
    for networks, path_mtu in peers:
        mtu = fitting(path_mtu, interface_mtu)
        if mtu > DEFAULT_MTU:
            found.update(dict.fromkeys(networks, mtu))
    return found


def differences(applied: Mapping[Network, int], now: Mapping[Network, int]) -> list[Change]:
    """Return what turns the routes that stand into those wanted; what becomes smaller first."""
    gone = [Change(network, None, present=True) for network in applied if network not in now]
    less: list[Change] = []
    more: list[Change] = []
    for network, mtu in now.items():
        before = applied.get(network)
        if before == mtu:
            continue
        shrinks = before is not None and mtu < before
        (less if shrinks else more).append(Change(network, mtu, present=before is not None))
    return gone + less + more
