"""One lookup: whom to ask next, and when it is over. A core; the shell asks and reports back.

The library's crawlers ask three nodes, wait for all of them, and ask again, so each round costs a
timeout when one node is dead. Here a node that has not answered within slow_s no longer holds up
the others; its answer still counts if it comes.

    new ──ask──▶ asked ──slow_s──▶ slow
                   │                │
                   ├── answer ──────┼──▶ answered
                   └── timeout ─────┴──▶ failed

A lookup is over when those `closest` to the target that may still answer have all answered, when it
has asked ASKED_MAX, or when the shell says so (its deadline, or enough found). An answer that lies
costs its claims: at most CONTACTS_MAX candidates, each of which must answer with a certificate.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from agent.discovery.contact import Contact

# Questions in flight, apart from those that are slow. Kademlia's alpha is 3; 5 saves a round.
PARALLEL = 5
# Nodes that store a record. With 30 % of them dead at once, all ten are dead 6 times in a million.
REPLICAS = 10
# Even 10,000 nodes need some 30 questions; what goes beyond is someone's invention.
ASKED_MAX = 80
# With so many answers, a lookup does not wait for slow ones who have never answered before: they
# may be someone's invention, and each would cost a timeout.
ENOUGH_ANSWERS = 4
CANDIDATES_MAX = 256
# One node may be offered under several addresses (LAN, public), or a wrong one.
ADDRESSES_PER_NODE = 3


class State(enum.Enum):
    """Where a candidate stands; see the drawing above."""

    NEW = 1
    ASKED = 2
    SLOW = 3
    ANSWERED = 4
    FAILED = 5


@dataclass
class Candidate:
    """Someone who may be asked; `distance` is the XOR distance to the target."""

    contact: Contact
    distance: int
    state: State = State.NEW
    asked_at: float = 0.0


class Lookup:
    """The shortlist of one lookup for a 20-byte key. `now` is any clock in seconds."""

    def __init__(self, target: bytes, own: bytes, slow_s: float, closest: int = REPLICAS) -> None:
        """`own` is the id of the node that asks: it is never a candidate."""
        self._slow_s = slow_s
        self._target = int.from_bytes(target, "big")
        self._own = own
        self._closest = closest
        self._candidates: dict[tuple[bytes, str, int], Candidate] = {}
        self._addresses: Counter[bytes] = Counter()
        self._asked = 0

    def offer(self, contacts: Iterable[Contact]) -> None:
        """Add candidates; those already known, or beyond the limits, change nothing."""
        for contact in contacts:
            if contact.id == self._own or contact.place in self._candidates:
                continue
            if self._addresses[contact.id] >= ADDRESSES_PER_NODE:
                continue
            self._addresses[contact.id] += 1
            distance = contact.long_id ^ self._target
            self._candidates[contact.place] = Candidate(contact, distance)
        if len(self._candidates) > CANDIDATES_MAX:
            new = [c for c in self._candidates.values() if c.state is State.NEW]
            new.sort(key=lambda c: c.distance)
            for candidate in new[CANDIDATES_MAX - len(self._candidates) :]:
                del self._candidates[candidate.contact.place]

    def ask(self, now: float) -> list[Contact]:
        """Return whom to ask now; they count as asked."""
        chosen = []
        short = self._shortlist(now)
        in_flight = sum(1 for c in self._candidates.values() if c.state is State.ASKED)
        for candidate in short:
            if in_flight >= PARALLEL or self._asked >= ASKED_MAX:
                break
            if candidate.state is State.NEW:
                candidate.state, candidate.asked_at = State.ASKED, now
                self._asked += 1
                in_flight += 1
                chosen.append(candidate.contact)
        return chosen

    def answered(self, contact: Contact) -> None:
        """Note that the contact has said all that it had to say."""
        self._candidates[contact.place].state = State.ANSWERED

    def failed(self, contact: Contact) -> None:
        """Note that the contact will not answer (or is not a member)."""
        self._candidates[contact.place].state = State.FAILED

    def nearest(self, count: int | None = None) -> list[Contact]:
        """Return who answered, nearest first."""
        answered = [c for c in self._candidates.values() if c.state is State.ANSWERED]
        answered.sort(key=lambda c: c.distance)
        return [c.contact for c in answered[: count or self._closest]]

    def settled(self, now: float, count: int) -> bool:
        """Say whether the `count` nearest that are not slow or gone have all answered."""
        short = self._shortlist(now)[:count]
        return bool(short) and all(c.state is State.ANSWERED for c in short)

    def finished(self, now: float) -> bool:
        """Say whether nobody is left to ask or to wait for."""
        short = self._shortlist(now)
        if any(c.state is State.ASKED for c in short):
            return False
        if self._asked < ASKED_MAX and any(c.state is State.NEW for c in short):
            return False
        there = {c.contact.id for c in short}
        reach = short[-1].distance if len(short) >= self._closest else 1 << 160
        enough = len(short) >= ENOUGH_ANSWERS
        return not any(
            c.state is State.SLOW
            and c.distance < reach
            and c.contact.id not in there
            and (c.contact.heard or not enough)
            for c in self._candidates.values()
        )

    def wake_in(self, now: float) -> float:
        """Return the seconds until the next candidate turns slow (slow_s when none is asked)."""
        asked = [c.asked_at for c in self._candidates.values() if c.state is State.ASKED]
        return max(0.0, min(asked, default=now) + self._slow_s - now)

    def _shortlist(self, now: float) -> list[Candidate]:
        """Return the nearest that answered or may soon, one a node, nearest first."""
        by_node: dict[bytes, Candidate] = {}
        for candidate in self._candidates.values():
            if candidate.state is State.ASKED and now - candidate.asked_at >= self._slow_s:
                candidate.state = State.SLOW
            if candidate.state in (State.FAILED, State.SLOW):
                continue
            rival = by_node.get(candidate.contact.id)
            if rival is None or candidate.state.value > rival.state.value:
                by_node[candidate.contact.id] = candidate
        return sorted(by_node.values(), key=lambda c: c.distance)[: self._closest]
