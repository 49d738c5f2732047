"""Which WireGuard peers this node has, where they may be, and whether they are there. A core.

The daemon feeds it what discovery and the certificates say (`learn`) and what the device shows
(`observe`), and gives its `configs` to the device. Endpoints are the path engine's choice; without
it (no CAP_NET_RAW) they are tried one after another, which gets through no NAT.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import nacl.bindings
import nacl.utils

from agent import endpoint as endpoints
from agent.identity.keys import NodeId
from agent.overlay.device import Endpoint, PeerConfig, PeerState
from agent.overlay.endpoints import FRESH_HANDSHAKE_S, Choice, advance

# Half of what most NATs and firewalls keep an idle UDP flow for (30 s, RFC 4787 asks for 120 s).
KEEPALIVE_S = 15
# Both sides send a keepalive each 15 s, so two lost ones in a row mean that nobody is there.
HEARD_LIMIT_S = 40.0
# Throughput is that of so long: the device is looked at twice a second while packets flow, and each
# 5 s while none do.
RATE_WINDOW_S = 5.0


@dataclass(frozen=True)
class Wish:
    """How WireGuard shall reach a peer; `order` and `session` as in `PeerConfig`.

    `passive`: not at all, but it may call.
    """

    endpoint: Endpoint | None = None
    order: int = 0
    session: int = 0
    passive: bool = False


Chosen = Callable[[NodeId], Wish | None]
"""How WireGuard shall reach a member; None while nothing flows to it: it is no peer then."""

# Nobody has the private key of this one, and nobody hears the discard port. What goes to a member
# that is no peer waits there, in vain, instead of being an error to whoever sent it: by the time
# TCP or a person tries again, there is a path.
_NOBODY_KEY = nacl.bindings.crypto_scalarmult_base(nacl.utils.random(32))
_NOBODY_AT = ("127.0.0.1", 9)


class _Throughput:
    """Bytes per second, received and sent, over the last looks at a peer's counters."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int, int]] = deque()

    def look(self, now: float, rx: int, tx: int) -> None:
        """Take in the counters as they are at `now`."""
        looks = self._looks
        # Smaller counters are those of a device that was made anew; and clocks are set back.
        if looks and (now < looks[-1][0] or rx < looks[-1][1] or tx < looks[-1][2]):
            looks.clear()
        looks.append((now, rx, tx))
        while len(looks) > 2 and looks[1][0] <= now - RATE_WINDOW_S:
            looks.popleft()

    def rates(self, now: float) -> tuple[float | None, float | None]:
        """Return both; None until the counters were looked at twice, and when nobody looks."""
        if not self._looks:
            return None, None
        (began, rx, tx), (ended, rx_now, tx_now) = self._looks[0], self._looks[-1]
        if ended <= began or now - ended > 2 * RATE_WINDOW_S:
            return None, None
        return (rx_now - rx) / (ended - began), (tx_now - tx) / (ended - began)


@dataclass
class _Peer:
    node: NodeId
    ipv6: IPv6Address
    ipv4: IPv4Address
    candidates: tuple[Endpoint, ...]
    choice: Choice
    state: PeerState | None = None
    heard_at: float | None = None
    throughput: _Throughput = field(default_factory=_Throughput)

    @functools.cached_property
    def networks(self) -> tuple[IPv6Network, IPv4Network]:
        """Its addresses as networks; made once, since they are asked for at each look."""
        return IPv6Network(self.ipv6), IPv4Network(self.ipv4)


class PeerTable:
    """Every member but this node."""

    def __init__(self, own: NodeId, networks: Sequence[IPv6Network | IPv4Network] = ()) -> None:
        """`networks`: those of the overlay."""
        self._own = own
        self._peers: dict[NodeId, _Peer] = {}
        self._by_key: dict[bytes, _Peer] = {}
        self._by_address: dict[IPv6Address | IPv4Address, NodeId] = {}
        self._networks = tuple(networks)
        self._held: dict[bytes, PeerConfig] = {}
        self._held_until = float("-inf")

    def learn(
        self, node: NodeId, ipv6: IPv6Address, ipv4: IPv4Address, candidates: Sequence[Endpoint]
    ) -> None:
        """Add a member, or replace what is known of its addresses (candidates best first)."""
        peer = self._peers.get(node)
        if peer is None:
            peer = _Peer(node, ipv6, ipv4, tuple(candidates), Choice())
            self._peers[node] = self._by_key[node.wireguard_public] = peer
        elif (peer.ipv6, peer.ipv4) != (ipv6, ipv4):
            peer.ipv6, peer.ipv4 = ipv6, ipv4
            vars(peer).pop("networks", None)
        peer.candidates = tuple(candidates)
        self._by_address[ipv6] = self._by_address[ipv4] = node

    def hold(self, adopted: Iterable[PeerConfig], until: float) -> None:
        """Leave peers that the device had at the start as they are, until `until` (unix seconds).

        Each until there is an endpoint to be set, and only while it is a member.
        """
        self._held = {config.node_public: config for config in adopted}
        self._held_until = until

    def at(self, address: IPv6Address | IPv4Address) -> NodeId | None:
        """Return whose overlay address this is."""
        return self._by_address.get(address)

    def addresses(self, nodes: Iterable[NodeId]) -> list[IPv6Address | IPv4Address]:
        """Return the overlay addresses of some nodes."""
        known = [self._peers[node] for node in nodes if node in self._peers]
        return [address for peer in known for address in (peer.ipv6, peer.ipv4)]

    def observe(self, states: Sequence[PeerState], now: float) -> None:
        """Take in what the device shows at `now` (unix seconds)."""
        seen = {state.public_key for state in states}
        for key, known in self._by_key.items():
            if key not in seen:
                known.state = known.heard_at = None
        for state in states:
            peer = self._by_key.get(state.public_key)
            if peer is None:
                continue
            # Fewer than before: the peer was added anew.
            if state.rx_bytes > (peer.state.rx_bytes if peer.state else 0):
                peer.heard_at = now
            peer.state = state
            peer.throughput.look(now, state.rx_bytes, state.tx_bytes)

    def configs(
        self, is_member: Callable[[NodeId], bool], now: float, chosen: Chosen | None = None
    ) -> list[PeerConfig]:
        """Return the peers that the device shall have at `now`: the members, no one else.

        `chosen` says how; without it all are peers, at one of their candidates after another.
        """
        wanted = []
        asleep = False
        for peer in self._peers.values():
            if not is_member(peer.node):
                continue
            held = self._still_held(peer, chosen, now)
            if held is not None:
                wanted.append(held)
                continue
            wish = chosen(peer.node) if chosen else Wish(self._next(peer, now))
            if wish is None:
                asleep = True
                continue
            begins = self._begins(peer, chosen) and not wish.passive
            if chosen and begins and wish.endpoint is None and self._handshake(peer) is None:
                # A packet that waits for it would begin a handshake into the void, and the next
                # try is 5 s later.
                continue
            wanted.append(
                PeerConfig(
                    node_public=peer.node.wireguard_public,
                    endpoint=wish.endpoint,
                    allowed_ips=peer.networks,
                    keepalive_s=KEEPALIVE_S if begins else 0,
                    order=wish.order,
                    session=wish.session,
                )
            )
        if asleep:
            wanted.append(PeerConfig(_NOBODY_KEY, _NOBODY_AT, self._networks))
        return wanted

    def mtus(
        self, is_member: Callable[[NodeId], bool], carried: Callable[[NodeId], int]
    ) -> list[tuple[tuple[IPv6Network, IPv4Network], int]]:
        """Return the members' addresses with what the paths to them carry, as `carried` says."""
        return [
            (peer.networks, carried(peer.node))
            for peer in self._peers.values()
            if is_member(peer.node)
        ]

    def candidates(self, node: NodeId) -> tuple[Endpoint, ...]:
        """Return where a node says it is, best first."""
        peer = self._peers.get(node)
        return peer.candidates if peer is not None else ()

    def connected(self, node: NodeId, now: float) -> bool:
        """Say whether there is a session with the node and it was heard lately."""
        peer = self._peers.get(node)
        if peer is None or peer.heard_at is None:
            return False
        handshake = self._handshake(peer)
        fresh = handshake is not None and now - handshake < FRESH_HANDSHAKE_S
        return fresh and now - peer.heard_at < HEARD_LIMIT_S

    def host(self, node: NodeId) -> str | None:
        """Return the host to which WireGuard sends what is for a node."""
        peer = self._peers.get(node)
        endpoint = peer.state.endpoint if peer is not None and peer.state is not None else None
        return endpoint[0] if endpoint is not None else None

    def nodes(self) -> list[NodeId]:
        """Return all known nodes."""
        return list(self._peers)

    def describe(self, node: NodeId, now: float) -> dict[str, Any]:
        """Describe the way to a node: path, endpoint, age of the handshake in s, bytes, bytes/s."""
        peer = self._peers.get(node)
        state = peer.state if peer else None
        endpoint = state.endpoint if state else None
        handshake = self._handshake(peer) if peer else None
        rx_rate, tx_rate = peer.throughput.rates(now) if peer else (None, None)
        return {
            "path": "direct" if self.connected(node, now) else "none",
            "endpoint": endpoints.join(*endpoint) if endpoint else None,
            "handshake_age_s": None if handshake is None else max(0.0, now - handshake),
            "rx_bytes": state.rx_bytes if state else 0,
            "tx_bytes": state.tx_bytes if state else 0,
            "rx_bytes_s": rx_rate,
            "tx_bytes_s": tx_rate,
        }

    def _still_held(self, peer: _Peer, chosen: Chosen | None, now: float) -> PeerConfig | None:
        """Return a peer as it was at the start if it is to stay so."""
        key = peer.node.wireguard_public
        held = self._held.get(key)
        if held is None:
            return None
        wish = chosen(peer.node) if chosen else None
        if now >= self._held_until or (wish is not None and wish.endpoint is not None):
            del self._held[key]
            return None
        return replace(held, allowed_ips=peer.networks)

    def _begins(self, peer: _Peer, chosen: Chosen | None) -> bool:
        """Say whether WireGuard shall keep the session up from here, and so begin it.

        Two that begin at once, within a packet's way, each drop the other's handshake and wait 5 s.
        Where both ends get the endpoint at the same moment, the lower id alone begins.
        """
        return chosen is None or self._own < peer.node or self._handshake(peer) is not None

    def _next(self, peer: _Peer, now: float) -> Endpoint | None:
        # A fresh session with a silent peer is stale all the same: try its other endpoints.
        handshake = self._handshake(peer) if self.connected(peer.node, now) else None
        peer.choice = advance(peer.choice, peer.candidates, handshake, now)
        return peer.choice.endpoint

    @staticmethod
    def _handshake(peer: _Peer) -> float | None:
        return peer.state.last_handshake if peer.state else None
