"""Which members help the others to find each other: rendezvous and relays, nearest first. A core.

A member helps if others reach it from outside, which discovery knows: only such nodes are asked
anything there. Whoever says by its roles that it relays comes first, then who is nearest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.identity.keys import NodeId
from agent.paths.candidates import is_private, is_unicast
from agent.paths.messages import Place

# As many as the engine asks; the next one of each steps in when one is gone.
RENDEZVOUS_MAX = 4
RELAYS_MAX = 6
RELAY_ROLE = "relay"
# Round trips are taken in steps of this, so that noise does not change the order all the time.
_RTT_STEP_S = 0.02
_UNKNOWN_RTT_S = 1.0


@dataclass(frozen=True)
class Helpers:
    """Members of use to the others: who says where we are seen, and who relays."""

    rendezvous: tuple[tuple[NodeId, Place], ...] = ()
    """WireGuard's place there."""
    relays: tuple[tuple[NodeId, tuple[str, ...]], ...] = ()
    """The addresses at which it serves."""


@dataclass(frozen=True)
class Reachable:
    """A member that others reach: the address that answered, its WireGuard places, roles, RTT."""

    node: NodeId
    host: str
    places: tuple[Place, ...]
    roles: tuple[str, ...]
    rtt_s: float | None


def choose(members: Iterable[Reachable]) -> Helpers:
    """Return who helps; equal members in any order give equal helpers."""
    near = sorted(members, key=_distance)
    rendezvous = [(m.node, place) for m in near if (place := _place(m)) is not None]
    relays = [(m.node, _hosts(m)) for m in near if _hosts(m)]
    relays.sort(key=lambda each: RELAY_ROLE not in next(m.roles for m in near if m.node == each[0]))
    return Helpers(tuple(rendezvous[:RENDEZVOUS_MAX]), tuple(relays[:RELAYS_MAX]))


def _distance(member: Reachable) -> tuple[bool, int, bytes]:
    """Order by RTT, but whoever has a public address before who is on our LAN: it sees our NAT."""
    rtt_s = _UNKNOWN_RTT_S if member.rtt_s is None else member.rtt_s
    return is_private(member.host), int(rtt_s / _RTT_STEP_S), member.node.ed25519


def _place(member: Reachable) -> Place | None:
    """Return WireGuard's place at the address that answered."""
    for host, port in member.places:
        if host == member.host:
            return host, port
    # Behind a mapped or forwarded port its own word is another address than the one that answered.
    port = member.places[0][1] if member.places else 0
    return (member.host, port) if port and is_unicast(member.host) else None


def _hosts(member: Reachable) -> tuple[str, ...]:
    hosts = [member.host, *(host for host, _ in member.places)]
    return tuple(dict.fromkeys(host for host in hosts if is_unicast(host)))
