"""What stands between this node and the internet, from what rendezvous nodes see. A core.

A rendezvous is asked on two ports. Its word is one node's word, and it may lie:

    fresh observations                                             kind
    ------------------                                             ----
    a place that is an interface address of ours, with our port,
      by most rendezvous                                           NONE
    one place by two rendezvous or more, and fewer rendezvous saw
      two places than saw one                                      EASY
    several rendezvous, no place by two of them                    HARD
    one rendezvous, one place on both of its ports                 EASY
    one rendezvous, another place on each port                     HARD
    every one asked ASKS_MIN times, none answered for BLOCKED_S    BLOCKED
    else                                                           UNKNOWN

Where they disagree without a majority it is HARD: that costs a birthday attempt, whereas a false
EASY costs the direct path. All observed places are candidates anyway, the commonest first. Only
public IPv4 places say a kind: a rendezvous on our own LAN sees our private address, and that tells
nothing of the router. An observation holds OBSERVED_S.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from agent.identity.keys import NodeId
from agent.paths.candidates import Surroundings, is_private
from agent.paths.messages import NatKind, Place

# We ask every 20 s (engine.py); one that stays silent for four times that is forgotten.
OBSERVED_S = 90.0
# With a fifth of all packets lost each way, six questions of two rendezvous all fail once in 500.
ASKS_MIN = 3
BLOCKED_S = 0.9
# Of observed places that we tell: a hard NAT makes one for each rendezvous and port.
PLACES_MAX = 4
_RENDEZVOUS_MAX = 8


@dataclass
class _Seen:
    place: Place
    at: float


class NatTable:
    """What each rendezvous saw, and what follows from it."""

    def __init__(self) -> None:
        self._seen: dict[NodeId, dict[int, _Seen]] = {}
        self._asked: dict[NodeId, int] = {}
        self._silent_since: float | None = None

    def clear(self) -> None:
        """Forget all: we are on another network."""
        self._seen.clear()
        self._asked.clear()
        self._silent_since = None

    def keep(self, rendezvous: Iterable[NodeId]) -> None:
        """Forget those who are none any more."""
        kept = set(rendezvous)
        self._seen = {node: seen for node, seen in self._seen.items() if node in kept}
        self._asked = {node: asks for node, asks in self._asked.items() if node in kept}

    def asked(self, rendezvous: NodeId, now: float) -> None:
        """Note that a rendezvous was asked."""
        if len(self._asked) < _RENDEZVOUS_MAX or rendezvous in self._asked:
            self._asked[rendezvous] = self._asked.get(rendezvous, 0) + 1
        if self._silent_since is None:
            self._silent_since = now

    def answered(self, rendezvous: NodeId, port: int, place: Place, now: float) -> None:
        """Note where a rendezvous sees us from its `port`; only one that was asked may say so."""
        if rendezvous not in self._asked or not 0 < place[1] < 65536:
            return
        self._asked = dict.fromkeys(self._asked, 0)
        self._silent_since = None
        ports = self._seen.setdefault(rendezvous, {})
        if port in ports or len(ports) < 2:
            ports[port] = _Seen(place, now)

    def places(self, now: float) -> list[Place]:
        """Return where we are seen, the place that most agree on first: PLACES_MAX at most."""
        votes: Counter[Place] = Counter()
        for places in self._by_rendezvous(now).values():
            votes.update(set(places))
        ranked = sorted(votes, key=lambda place: (-votes[place], place))
        return ranked[:PLACES_MAX]

    def kind(self, around: Surroundings, now: float) -> NatKind:
        """Return the NAT's kind by the table above."""
        seen = {
            node: ipv4
            for node, places in self._by_rendezvous(now).items()
            if (ipv4 := [place for place in places if _tells(place)])
        }
        if not seen:
            blocked = not self._by_rendezvous(now) and self._blocked(now)
            return NatKind.BLOCKED if blocked else NatKind.UNKNOWN
        untranslated = sum(
            all(around.own(host) and port == around.port for host, port in places)
            for places in seen.values()
        )
        if untranslated * 2 > len(seen):
            return NatKind.NONE
        split = sum(len(set(places)) > 1 for places in seen.values())
        if len(seen) == 1:
            (places,) = seen.values()
            if split:
                return NatKind.HARD
            return NatKind.EASY if len(places) > 1 else NatKind.UNKNOWN
        votes: Counter[Place] = Counter()
        for places in seen.values():
            votes.update(set(places))
        agreed = votes.most_common(1)[0][1] > 1
        return NatKind.EASY if agreed and split * 2 < len(seen) else NatKind.HARD

    def public_hosts(self, now: float) -> frozenset[str]:
        """Return the addresses under which we are seen that are not of a private network."""
        return frozenset(host for host, _ in self.places(now) if not is_private(host))

    def _blocked(self, now: float) -> bool:
        return (
            self._silent_since is not None
            and now - self._silent_since >= BLOCKED_S
            and all(asks >= ASKS_MIN for asks in self._asked.values())
        )

    def _by_rendezvous(self, now: float) -> dict[NodeId, list[Place]]:
        found = {}
        for node, ports in self._seen.items():
            fresh = [seen.place for seen in ports.values() if now - seen.at <= OBSERVED_S]
            if fresh:
                found[node] = fresh
        return found


def _tells(place: Place) -> bool:
    return ":" not in place[0] and not is_private(place[0])
