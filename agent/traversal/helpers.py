"""Which members help the others to find each other: rendezvous and relays, nearest first. A core.

A member helps if others reach it from outside, which discovery knows: only such nodes are asked
anything there. Whoever says by its roles that it relays comes first, then who is nearest.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from agent.identity.keys import NodeId
from agent.paths.candidates import is_private, is_unicast
from agent.paths.messages import Place

Network = IPv4Network | IPv6Network

# As many as the engine asks; the next one of each steps in when one is gone.
RENDEZVOUS_MAX = 4
RELAYS_MAX = 6
RELAY_ROLE = "relay"
# Round trips are taken in steps of this, so that noise does not change the order all the time.
_RTT_STEP_S = 0.02
# Who helps already stays unless another is nearer by more than so many steps: a busy moment must
# not have everyone ask others.
_STAY_STEPS = 5
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
    """A member that others reach: its underlay address, WireGuard places, roles, RTT."""

    node: NodeId
    host: str
    places: tuple[Place, ...]
    roles: tuple[str, ...]
    rtt_s: float | None


class Outside:
    """Where members answered on the underlay; over the overlay everyone does."""

    def __init__(self, overlay: Sequence[Network]) -> None:
        """`overlay`: the mesh's own networks."""
        self._overlay = tuple(overlay)
        self._hosts: dict[NodeId, str] = {}

    def answered(self, node: NodeId, host: str) -> None:
        """Note that discovery has a member at an address, of whichever network."""
        address = ip_address(host)
        if not any(address in net for net in self._overlay if net.version == address.version):
            self._hosts[node] = host

    def hosts(self, alive: Container[NodeId]) -> dict[NodeId, str]:
        """Return the underlay addresses of those who are still there, and forget the others."""
        self._hosts = {node: host for node, host in self._hosts.items() if node in alive}
        return dict(self._hosts)


def reachable(
    node: NodeId, host: str | None, places: Sequence[Place], roles: tuple[str, ...],
    rtt_s: float | None,
) -> Reachable | None:  # fmt: skip
    """Return a member that helps, or None for one that others do not reach.

    `host`: where it answered. One that never did counts all the same if its role is to relay and
    it has a public address: where no UDP gets out of here, nobody answers discovery.
    """
    if host is None and RELAY_ROLE in roles:
        public = [each for each, _ in places if is_unicast(each) and not is_private(each)]
        host = min(public, key=lambda each: ":" in each, default=None)
    return None if host is None else Reachable(node, host, tuple(places), roles, rtt_s)


def choose(members: Iterable[Reachable], before: Helpers | None = None) -> Helpers:
    """Return who helps; equal members in any order give equal helpers.

    Who helped `before` stays, unless others are much nearer or it is there no more.
    """
    before = before or Helpers()
    asked, relays = {node for node, _ in before.rendezvous}, {node for node, _ in before.relays}
    near = sorted(members, key=lambda m: _distance(m, stays=m.node in asked))
    rendezvous = [(m.node, place) for m in near if (place := _place(m)) is not None]
    # A relay on our own LAN is none for a peer elsewhere, and a peer here needs none.
    relaying = [m for m in near if not is_private(m.host)]
    relaying.sort(key=lambda m: (RELAY_ROLE not in m.roles, _distance(m, stays=m.node in relays)))
    return Helpers(
        tuple(rendezvous[:RENDEZVOUS_MAX]),
        tuple((m.node, _hosts(m)) for m in relaying[:RELAYS_MAX]),
    )


def _distance(member: Reachable, *, stays: bool) -> tuple[bool, int, bytes]:
    """Order by RTT, but whoever has a public address before who is on our LAN: it sees our NAT."""
    rtt_s = _UNKNOWN_RTT_S if member.rtt_s is None else member.rtt_s
    steps = int(rtt_s / _RTT_STEP_S) - (_STAY_STEPS if stays else 0)
    return is_private(member.host), steps, member.node.ed25519


def _place(member: Reachable) -> Place | None:
    """Return WireGuard's place at the member's address."""
    if not is_unicast(member.host):
        return None
    # Behind a forwarded port it knows another address than the one that answers.
    port = next((port for host, port in member.places if host == member.host), None)
    if port is None:
        port = member.places[0][1] if member.places else None
    return None if port is None else (member.host, port)


def _hosts(member: Reachable) -> tuple[str, ...]:
    hosts = [member.host, *(host for host, _ in member.places)]
    return tuple(dict.fromkeys(host for host in hosts if is_unicast(host)))
