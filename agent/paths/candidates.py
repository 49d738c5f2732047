"""Where a peer may be, which of those places may be probed at all, and how good a path is. A core.

A peer's candidates are its own words, and it may be hostile: it must not have us scan our LAN or
knock at strangers. So a candidate is probed only if

    address                          is probed
    -------                          ---------
    public                           yes
    private, shared (RFC 1918,       if it lies in a subnet of ours, or if the peer was seen behind
     100.64.0.0/10, fc00::/7)        our own public address, and then SHARED_MAX of them at most
    our own, our subnet's broadcast  never
    the overlay's, loopback,         never
     multicast, link-local, reserved
    any with port 0                  never

and CANDIDATES_MAX of a peer at one time, NEW_PER_MINUTE new ones a minute. How often each is
probed is `pair.py`'s to say. Documentation ranges (192.0.2.0/24 and so on) count as public: labs
use them.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)

from agent.paths.messages import CANDIDATES_MAX, Candidate, Kind, NatKind, Place

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

# Of private places that lie in no subnet of ours: a home with a router behind a router has two.
SHARED_MAX = 4
# New places of one peer that are taken up in a minute: two full sets. One that moves has a new set.
NEW_PER_MINUTE = 2 * CANDIDATES_MAX
_MINUTE_S = 60.0
_PRIVATE = tuple(
    IPv4Network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
)
_NEVER_IPV4 = tuple(
    IPv4Network(n)
    for n in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
)
_UNIQUE_LOCAL = IPv6Network("fc00::/7")
# IPv6 that is neither global nor unique local; and IPv4 in disguise, which would pass the checks.
_ROUTED_IPV6 = (IPv6Network("2000::/3"), _UNIQUE_LOCAL)


class PathClass(enum.IntEnum):
    """How good a path is; less is better, whatever its RTT."""

    LAN = 0
    IPV6 = 1
    PUBLIC = 2
    PUNCHED = 3
    RELAYED = 4


@dataclass(frozen=True)
class Surroundings:
    """What this machine knows of its own network.

    `interfaces`: its underlay addresses with their prefix. `overlay`: the mesh's own networks.
    `port`: WireGuard's. `mapped`, `configured`, `seen_by_peers`: places at which it may be reached
    by a router's word, the operator's, and WireGuard peers'.
    """

    interfaces: tuple[Interface, ...] = ()
    overlay: tuple[Network, ...] = ()
    port: int = 51820
    mapped: tuple[Place, ...] = ()
    configured: tuple[Place, ...] = ()
    seen_by_peers: tuple[Place, ...] = ()

    def on_link(self, host: str) -> bool:
        """Say whether an address lies in a subnet of ours."""
        address = _address(host)
        return any(
            address.version == i.version and address in i.network
            for i in self.interfaces
            if i.network.num_addresses > 1
        )

    def own(self, host: str) -> bool:
        """Say whether an address is that of an interface of ours."""
        return any(str(i.ip) == host for i in self.interfaces)


@lru_cache(maxsize=4096)
def _address(host: str) -> IPv4Address | IPv6Address:
    return ip_address(host)


@lru_cache(maxsize=4096)
def is_private(host: str) -> bool:
    """Say whether an address means something on its own network only."""
    address = _address(host)
    if isinstance(address, IPv4Address):
        return any(address in network for network in _PRIVATE)
    return address in _UNIQUE_LOCAL


@lru_cache(maxsize=4096)
def is_unicast(host: str) -> bool:
    """Say whether an address can be another machine's: not loopback, link-local, reserved."""
    address = _address(host)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NEVER_IPV4)
    return any(address in network for network in _ROUTED_IPV6)


def permitted(place: Place, around: Surroundings) -> bool:
    """Say whether a datagram of ours may go there at all, private networks aside."""
    host, port = place
    if not 0 < port < 65536 or not is_unicast(host) or around.own(host):
        return False
    address = _address(host)
    return not any(address in n for n in around.overlay if n.version == address.version) and not (
        any(
            isinstance(i, IPv4Interface)
            and i.network.prefixlen < 31
            and address in (i.network.broadcast_address, i.network.network_address)
            for i in around.interfaces
        )
    )


def probeable(
    candidates: Iterable[Candidate], around: Surroundings, own_public: frozenset[str]
) -> list[Candidate]:
    """Return those of a peer's candidates that may be probed, by the table above.

    `own_public`: the addresses under which rendezvous see us.
    """
    given = list(candidates)[:CANDIDATES_MAX]
    behind_ours = any(
        c.kind in (Kind.OBSERVED, Kind.WIREGUARD) and c.place[0] in own_public for c in given
    )
    found: dict[Place, Candidate] = {}
    shared = 0
    for candidate in given:
        place = candidate.place
        if place in found or not permitted(place, around):
            continue
        if is_private(place[0]) and not around.on_link(place[0]):
            if not behind_ours or shared >= SHARED_MAX:
                continue
            shared += 1
        found[place] = candidate
    return list(found.values())


def own_candidates(around: Surroundings, observed: Iterable[Place]) -> tuple[Candidate, ...]:
    """Return what we tell peers of ourselves, the likeliest first: CANDIDATES_MAX at most."""
    by_kind = [(Kind.CONFIGURED, p) for p in around.configured]
    by_kind += [(Kind.MAPPED, p) for p in around.mapped]
    by_kind += [(Kind.OBSERVED, p) for p in observed]
    for interface in around.interfaces:
        kind = Kind.LAN if interface.version == 4 else Kind.IPV6
        by_kind.append((kind, (str(interface.ip), around.port)))
    by_kind += [(Kind.WIREGUARD, p) for p in around.seen_by_peers]
    found: dict[Place, Candidate] = {}
    for kind, place in by_kind:
        if place not in found and 0 < place[1] < 65536 and is_unicast(place[0]):
            found[place] = Candidate.of(kind, place)
    return tuple(found.values())[:CANDIDATES_MAX]


def path_class(
    place: Place,
    kind: Kind | None,
    around: Surroundings,
    own_nat: NatKind,
    peer_nat: NatKind,
    seen: Place | None = None,
) -> PathClass:
    """Return the class of a direct path to a peer's place.

    `kind`: the peer's word about the place; None for one that we heard it from. `seen`: where the
    peer sees us on this path.
    """
    host = place[0]
    if around.on_link(host) or is_private(host):
        return PathClass.LAN
    if ":" in host:
        return PathClass.IPV6
    opened = kind in (Kind.MAPPED, Kind.CONFIGURED) or seen in (*around.mapped, *around.configured)
    if opened or NatKind.NONE in (own_nat, peer_nat):
        return PathClass.PUBLIC
    return PathClass.PUNCHED


class Intake:
    """How many new places of one peer are taken up: NEW_PER_MINUTE."""

    def __init__(self) -> None:
        self._taken: OrderedDict[Place, float] = OrderedDict()

    def admit(self, place: Place, now: float) -> bool:
        """Say whether a place may be taken up; one that was in the last minute always may."""
        while self._taken and now - next(iter(self._taken.values())) > _MINUTE_S:
            self._taken.popitem(last=False)
        if place in self._taken:
            return True
        if len(self._taken) >= NEW_PER_MINUTE:
            return False
        self._taken[place] = now
        return True
