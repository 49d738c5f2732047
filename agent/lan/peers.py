"""Who is on the LAN: announcements judged, and those believed remembered. A core.

Used by `beacon.py` and `newcomer.py`, which feed it what the link carries. Everything that comes is
hostile until proved; an outsider costs one failed decryption, whoever replays an announcement one
that succeeds, and only a newer one than the last of its node and link is worth the signature check.

| comes                                              | becomes                                  |
|----------------------------------------------------|------------------------------------------|
| not sealed under an accepted key                   | FOREIGN                                  |
| sealed, but no announcement; no usable address     | MALFORMED                                |
| this node's own                                    | OWN                                      |
| more than CLOCK_SKEW_S from our clock              | CLOCK                                    |
| not newer than the last of this node and link      | OLD                                      |
| more than PROOFS_PER_S to check                    | CROWDED                                  |
| not signed by the node that it names               | UNPROVEN                                 |
| leaving                                            | the node is gone; older ones stay OLD    |
| a node, address or port that was not known         | news: the LanPeer                        |
| anything else                                      | kept alive, no news                      |

A node that is silent for EXPIRES_S is gone. Times are unix seconds.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass, field

from agent.errors import PeerError
from agent.identity.keys import NodeId
from agent.lan.announcement import Announcement, AnnouncementSeal, Ports, usable

# A member announces itself each minute: three lost ones in a row mean that it is gone.
EXPIRES_S = 200.0
# As in discovery: a machine that keeps time at all is within two minutes; and what answers a
# question may have been sealed 20 s before.
CLOCK_SKEW_S = 150.0
# What a node sent last is remembered for so long that none of it passes as within the skew again.
_REMEMBERED_S = 2 * CLOCK_SKEW_S
# Ten times the largest LAN we plan for; an entry takes about 2 KB. A node more drives out the one
# that was silent longest, which is back with its next announcement.
NODES_MAX = 1024
# Cable, wireless, and two bridges.
LINKS_PER_NODE_MAX = 4
# Only holders of the network key get as far as a signature check. A hundred take 1.5 % of a core;
# the burst is for a LAN whose machines all come back after a power cut.
PROOFS_PER_S = 100.0
PROOFS_BURST = 400.0


class Refusal(enum.Enum):
    """Why an announcement was not believed; nobody but our own counters hears of it."""

    FOREIGN = "not sealed with this mesh's network key"
    MALFORMED = "sealed, but no announcement of ours"
    OWN = "our own"
    CLOCK = "too old or from the future"
    OLD = "heard before, or overtaken by a newer one"
    CROWDED = "more than there is time to check"
    UNPROVEN = "not from the node that it names"


@dataclass(frozen=True)
class LanPeer:
    """A node on the LAN: where it is, by its own signed word. Membership is not proved by this.

    `addresses` are IP addresses as text, the latest announced first, at most 24 (ADDRESSES_MAX for
    each of LINKS_PER_NODE_MAX); `seen_at` is unix seconds.
    """

    node: NodeId
    addresses: tuple[str, ...]
    control_port: int
    discovery_port: int
    wireguard_port: int
    seen_at: float


class Allowance:
    """So many a second and so many at once; what is over that is refused."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._left = burst
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Say whether one more is allowed at `now` (seconds, a clock that may be set back)."""
        passed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._left = min(self._burst, self._left + passed * self._per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


@dataclass
class _Heard:
    announcement: Announcement
    at: float


@dataclass
class _Known:
    heard: OrderedDict[int, _Heard] = field(default_factory=OrderedDict)  # by link, latest last
    floor_us: int = 0  # nothing sent up to here is believed any more
    peer: LanPeer | None = None
    at: float = 0.0


class PeerBook:
    """The nodes that announced themselves lately, this one left out."""

    def __init__(self, seal: AnnouncementSeal, own: NodeId | None, *, loopback: bool) -> None:
        """Take the mesh's seal, this node (None: it has no name yet), and whether lo counts."""
        self.seal = seal
        self.refusals: dict[Refusal, int] = dict.fromkeys(Refusal, 0)
        self._own = own
        self._loopback = loopback
        self._known: OrderedDict[bytes, _Known] = OrderedDict()  # the one heard last comes last
        self._proofs = Allowance(PROOFS_PER_S, PROOFS_BURST)

    def take(self, sealed: bytes, now: float) -> LanPeer | Refusal | None:
        """Judge what came at `now`: news of a node, a refusal, or None (no news). Never raises."""
        result = self._take(sealed, now)
        if isinstance(result, Refusal):
            self.refusals[result] += 1
        return result

    def expire(self, now: float) -> list[LanPeer]:
        """Forget what was not heard for EXPIRES_S, and return the nodes that are gone by that."""
        gone = []
        for node, known in list(self._known.items()):
            known.at = min(known.at, now)  # where the clock was set back, it counts from now
            for link, heard in list(known.heard.items()):
                heard.at = min(heard.at, now)
                if now - heard.at > EXPIRES_S:
                    _drop(known, link)
            if known.heard:
                known.peer = _merge(known)
            elif known.peer is not None:
                gone.append(known.peer)
                known.peer = None
            if now - known.at > _REMEMBERED_S:
                del self._known[node]
        return gone

    def peers(self) -> list[LanPeer]:
        """Return the nodes that are there, the one heard last first."""
        return [k.peer for k in reversed(self._known.values()) if k.peer is not None]

    def _take(self, sealed: bytes, now: float) -> LanPeer | Refusal | None:
        try:
            opened = self.seal.open(sealed)
        except PeerError:
            return Refusal.MALFORMED
        if opened is None:
            return Refusal.FOREIGN
        said = opened.announcement
        if self._own is not None and said.node == self._own.ed25519:
            return Refusal.OWN
        if abs(said.sent_us / 1e6 - now) > CLOCK_SKEW_S:
            return Refusal.CLOCK
        if not said.leaving and not self._reachable(said):
            return Refusal.MALFORMED
        known = self._known.get(said.node)
        if known is not None and not _newer(said, known):
            return Refusal.OLD
        if not self._proofs.take(now):
            return Refusal.CROWDED
        if not self.seal.proved(opened):
            return Refusal.UNPROVEN
        return self._learn(said, now)

    def _learn(self, said: Announcement, now: float) -> LanPeer | None:
        known = self._known.pop(said.node, None) or _Known()
        self._known[said.node] = known
        known.at = now
        if len(self._known) > NODES_MAX:
            self._known.popitem(last=False)
        if said.leaving:
            known.heard.clear()
            known.floor_us, known.peer = said.sent_us, None
            return None
        known.heard.pop(said.link, None)
        known.heard[said.link] = _Heard(said, now)
        if len(known.heard) > LINKS_PER_NODE_MAX:
            _drop(known, next(iter(known.heard)))
        before, known.peer = known.peer, _merge(known)
        return known.peer if before is None or _where(before) != _where(known.peer) else None

    def _reachable(self, said: Announcement) -> bool:
        addresses = said.addresses
        return bool(addresses) and all(usable(a, loopback=self._loopback) for a in addresses)


def _drop(known: _Known, link: int) -> None:
    """Forget a link; what it said until now must not come back as if it were new."""
    known.floor_us = max(known.floor_us, known.heard.pop(link).announcement.sent_us)


def _newer(said: Announcement, known: _Known) -> bool:
    heard = known.heard.get(said.link)
    last_us = known.floor_us if heard is None else heard.announcement.sent_us
    return said.sent_us > max(last_us, known.floor_us)


def _merge(known: _Known) -> LanPeer:
    """Return the node as all its links together show it, the one heard last first."""
    latest = next(reversed(known.heard.values()))
    ports: Ports = latest.announcement.ports
    addresses = dict.fromkeys(
        str(address)
        for heard in reversed(known.heard.values())
        for address in heard.announcement.addresses
    )
    return LanPeer(
        node=latest.announcement.id,
        addresses=tuple(addresses),
        control_port=ports.control,
        discovery_port=ports.discovery,
        wireguard_port=ports.wireguard,
        seen_at=latest.at,
    )


def _where(peer: LanPeer) -> tuple[object, ...]:
    """What makes news; the order of the addresses and the time do not."""
    return (frozenset(peer.addresses), peer.control_port, peer.discovery_port, peer.wireguard_port)
