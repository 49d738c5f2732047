"""One lookup: whom to ask next, and when it is over. A core; the shell asks and reports back.

The library's crawlers ask three nodes, wait for all of them, and ask again, so each round costs a
timeout when one node is dead. Here a node that has not answered within slow_s no longer holds up
the others; its answer still counts if it comes.

    new ──ask──▶ asked ──slow_s──▶ slow
                   │                │
                   ├── answer ──────┼──▶ answered
                   └── timeout ─────┴──▶ failed

A lookup is over when those `closest` to the target that may still answer have all answered, when it
has asked ASKED_MAX, or when the shell says so (its deadline, or enough found).

Who offers contacts has credit: so many of those may be asked and not have answered, and one more
for each that has. A liar that invents nodes nearer to the target than any real one uses its credit
up, and its other claims wait until nobody else's are left. They then get a little more, once: many
real nodes may have died.

Liars that name only each other keep their credit, since they answer. In a large mesh such a chain
may end in ten of them, none of which is near; but then these lie farther apart than the nearest of
so many nodes would, and the shell has the lookup go on with the next ones (`astray`, as the failure
test of Castro et al., Secure routing for structured peer-to-peer overlay networks, OSDI 2002).
"""

from __future__ import annotations

import enum
from bisect import insort
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
# A wait is never shorter, so that a rounded clock cannot make a lookup spin.
WAKE_MIN_S = 0.001
# One node may be offered under several addresses (LAN, public), or wrong ones.
ADDRESSES_PER_NODE = 8
# But for one lookup in 500, the ten nearest lie within so many times the span of ten nodes on
# average; where only every tenth node is named, they take ten times that span.
ASTRAY = 3.0
# Claims of one source that are asked in vain: at first, for each that answered, and when nobody
# else's are left.
CREDIT, EARNED, MORE_CREDIT = 2, 1, 3


class State(enum.Enum):
    """Where a candidate stands; see the drawing above."""

    NEW = 1
    ASKED = 2
    SLOW = 3
    ANSWERED = 4
    FAILED = 5


@dataclass(slots=True)
class Source:
    """Someone who offered contacts: how many more of them may be asked and not have answered."""

    credit: int = CREDIT


@dataclass(slots=True)
class Candidate:
    """Someone who may be asked; `distance` is the XOR distance to the target.

    `sources` is empty for those that the asker knows itself.
    """

    contact: Contact
    distance: int
    sources: list[Source]
    state: State = State.NEW
    asked_at: float = 0.0

    @property
    def vouched(self) -> bool:
        """Whether anyone who offered it has credit left."""
        return not self.sources or any(source.credit > 0 for source in self.sources)


class Lookup:
    """The shortlist of one lookup for a 20-byte key. `now` is any clock in seconds."""

    def __init__(self, target: bytes, own: bytes, slow_s: float, closest: int = REPLICAS) -> None:
        """`own` is the id of the node that asks: it is never a candidate."""
        self._slow_s = slow_s
        self._target = int.from_bytes(target, "big")
        self._own = own
        self._closest = closest
        self._candidates: dict[tuple[bytes, str, int], Candidate] = {}
        self._order: list[Candidate] = []  # nearest first
        self._addresses: Counter[bytes] = Counter()
        self._asked = 0
        self._relaxed = False
        self._flying: list[Candidate] = []
        self._short: list[Candidate] | None = None  # until something changes, or
        self._short_until = 0.0  # someone turns slow

    @property
    def asked(self) -> int:
        """How many have been asked."""
        return self._asked

    @property
    def closest(self) -> int:
        """How many must have answered."""
        return self._closest

    def seen(self) -> frozenset[bytes]:
        """Return the ids of all candidates that there were."""
        return frozenset(self._addresses)

    def offer(self, contacts: Iterable[Contact], *, known: bool = False) -> None:
        """Add candidates that one node offered, or that are `known` to the asker itself.

        One node has one address from each who offers it; what is beyond the limits changes nothing.
        """
        self._short = None
        sources = [] if known else [Source()]
        named: set[bytes] = set()
        for contact in contacts:
            if contact.id == self._own or contact.id in named:
                continue
            named.add(contact.id)
            candidate = self._candidates.get(contact.place)
            if candidate is not None:
                if candidate.sources and candidate.state is State.NEW:
                    candidate.sources += sources
            elif self._addresses[contact.id] < ADDRESSES_PER_NODE:
                self._addresses[contact.id] += 1
                distance = contact.long_id ^ self._target
                candidate = Candidate(contact, distance, list(sources))
                self._candidates[contact.place] = candidate
                insort(self._order, candidate, key=_distance)
        self._trim()

    def _trim(self) -> None:
        if len(self._order) > CANDIDATES_MAX:
            farthest = [c for c in reversed(self._order) if c.state is State.NEW]
            for candidate in farthest[: len(self._order) - CANDIDATES_MAX]:
                del self._candidates[candidate.contact.place]
            self._order = [c for c in self._order if c.contact.place in self._candidates]

    def ask(self, now: float) -> list[Contact]:
        """Return whom to ask now; they count as asked."""
        chosen = self._choose(now)
        if not chosen and not self._relaxed and not self._in_flight(now):
            self._relaxed = True
            sources = {id(s): s for c in self._order if c.state is State.NEW for s in c.sources}
            for source in sources.values():
                source.credit = max(source.credit, 0) + MORE_CREDIT
            self._short = None
            chosen = self._choose(now)
        return chosen

    def _choose(self, now: float) -> list[Contact]:
        chosen: list[Contact] = []
        in_flight = self._in_flight(now)
        while in_flight < PARALLEL and self._asked < ASKED_MAX:
            # Each that is asked takes credit, so that others come into the shortlist.
            new = (c for c in self._shortlist(now) if c.state is State.NEW)
            candidate = next(new, None)
            if candidate is None:
                break
            candidate.state, candidate.asked_at = State.ASKED, now
            for source in candidate.sources:
                source.credit -= 1
            self._short = None
            self._asked += 1
            in_flight += 1
            self._flying.append(candidate)
            chosen.append(candidate.contact)
        return chosen

    def widen(self, closest: int) -> None:
        """Go on until so many have answered."""
        self._closest, self._short = closest, None

    def answered(self, contact: Contact) -> None:
        """Note that the contact has said all that it had to say."""
        candidate = self._candidates[contact.place]
        candidate.state = State.ANSWERED
        for source in candidate.sources:
            source.credit += 1 + EARNED
        self._short = None

    def failed(self, contact: Contact) -> None:
        """Note that the contact will not answer (or is not a member)."""
        self._candidates[contact.place].state = State.FAILED
        self._short = None

    def nearest(self, count: int | None = None) -> list[Contact]:
        """Return who answered, nearest first."""
        answered = [c.contact for c in self._order if c.state is State.ANSWERED]
        return answered[: count or self._closest]

    def astray(self, size: float) -> bool:
        """Say whether the nearest that answered lie too far apart for a mesh of this size."""
        near = self.nearest(REPLICAS)
        if len(near) < REPLICAS:
            return False
        span = near[-1].long_id ^ self._target
        return span * size > ASTRAY * REPLICAS * 2**160

    def stuck(self, now: float) -> bool:
        """Say whether all that were asked are slow or gone, and nobody else is known."""
        return not self._shortlist(now)

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
        for c in self._order:
            if c.distance >= reach:
                break
            awaited = c.contact.heard or not enough
            if c.state is State.SLOW and awaited and c.contact.id not in there:
                return False
        return True

    def wake_in(self, now: float) -> float:
        """Return the seconds until the next candidate turns slow (slow_s when none is asked)."""
        self._in_flight(now)
        asked = min((c.asked_at for c in self._flying), default=now)
        return max(WAKE_MIN_S, asked + self._slow_s - now)

    def _in_flight(self, now: float) -> int:
        """Return how many questions are out that are not slow yet."""
        after = now - self._slow_s
        self._flying = [c for c in self._flying if c.state is State.ASKED and c.asked_at > after]
        return len(self._flying)

    def _shortlist(self, now: float) -> list[Candidate]:
        """Return the nearest that answered or may soon, one a node, nearest first."""
        if self._short is not None and now < self._short_until:
            return self._short
        short: list[Candidate] = []
        until = float("inf")
        for candidate in self._order:  # the addresses of one node stand side by side
            state = candidate.state
            if state is State.FAILED or state is State.SLOW:
                continue
            if state is State.NEW and not candidate.vouched:
                continue
            if state is State.ASKED:
                if now - candidate.asked_at >= self._slow_s:
                    candidate.state = State.SLOW
                    continue
                until = min(until, candidate.asked_at + self._slow_s)
            if short and short[-1].distance == candidate.distance:
                if state.value > short[-1].state.value:
                    short[-1] = candidate
            elif len(short) == self._closest:
                break
            else:
                short.append(candidate)
        self._short, self._short_until = short, until
        return short


def _distance(candidate: Candidate) -> int:
    return candidate.distance
