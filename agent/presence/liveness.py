"""Which members are alive, suspect or gone, found out without an operator. A core.

Each node asks one other a second whether it is there, and everyone is asked by someone about once
a second, however many they are (as in SWIM: Das, Gupta, Motivala 2002). What a node hears of
another directly (a datagram that it sealed, something that it wrote and signed) is the only
evidence of life.

    state     becomes                when
    -----     -------                ----
    alive     suspect                two questions in a row were not answered, the first at once
                                     after a hint (its last link went, others doubt it), or nothing
                                     was heard for `silent_s`
    suspect   alive                  heard
    suspect   gone                   SUSPECT_S later
    gone      alive                  heard

A member that never answered a question from here (there is no path to it) is not suspected for its
silence under questions alone, only when another doubts it as well, or when nothing that it wrote
arrives for `silent_s`; one that lives and is doubted says so to all. `now` is monotonic seconds.

Where most questions come to nothing, it is this node or its network that is slow, and to suspect
everyone would only make it slower: it waits up to `patience` times as long then, and asks the
silent so much less often (as in Lifeguard: Dadgar, Phillips, Currey 2018). Whoever was heard of
since it was asked is not suspected at all. A third of the members may die at once without that.
"""

from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent.identity.keys import NodeId
from agent.presence import report

PROBE_INTERVAL_S = 1.0
# Newcomers are asked sooner than their turn comes, so many in one call of `due`.
FRESH_PER_CALL = 2
# A suspect is asked this often; it has four chances before it counts as gone.
SUSPECT_INTERVAL_S = 0.7
SUSPECT_S = 3.0
# A newcomer's agent is up so long after it became a member, on a slow machine.
NEW_S = 10.0
# For so long who has not shown yet that it is there is counted on, and links to it are tried.
UNSHOWN_S = 3.0
MISSES = 2
# So many more questions than answers may come to nothing before this node takes itself for the slow
# one, and waits longer; and so many count at most.
STRAIN_FREE, STRAIN_MAX = 3, 15
# In a mesh of few; in a larger one so many beats.
SILENT_S, SILENT_BEATS = 200.0, 3.3
# One of those who are gone is asked again this often; most say themselves that they are back.
GONE_INTERVAL_S = 10.0


class State(enum.Enum):
    """How a member stands."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    GONE = "gone"


_NEVER = float("-inf")
_LONG_AGO = -1e18  # asked some time, and due again

Changed = Callable[[NodeId, State], None]


@dataclass
class _Member:
    heard_at: float
    added_at: float
    state: State = State.ALIVE
    since: float = 0.0
    proved_at: float = _NEVER  # the newest that shows that it lives; `heard_at` begins with a guess
    answers: bool = False  # it answered a question from here at least once since it was last gone
    misses: int = 0
    allowed_misses: int = MISSES
    asked_at: float = _NEVER
    urgent: bool = False


class Liveness:
    """The other members as seen from this node."""

    def __init__(
        self,
        rng: random.Random,
        changed: Changed,
        shown: Callable[[NodeId], None] = lambda node: None,
    ) -> None:
        """`changed(node, state)` is called from within the methods below, at each change.

        `shown(node)` is called when the first comes from a member that was only taken to be alive.
        """
        self._rng = rng
        self._changed = changed
        self._shown = shown
        self._members: dict[NodeId, _Member] = {}
        self._round: list[NodeId] = []
        self._next_at = _NEVER
        self._gone_at = _NEVER
        self._strain = 0

    @property
    def patience(self) -> float:
        """How many times as long as usual to wait for answers, and for suspects: 1 … 7."""
        return 1.0 + max(0, self._strain - STRAIN_FREE) / 2

    @property
    def silent_s(self) -> float:
        """For how long nothing may be heard of a member whom no question reaches."""
        return max(SILENT_S, SILENT_BEATS * report.beat_interval_s(len(self._members) + 1))

    def set_members(self, nodes: Iterable[NodeId], now: float) -> None:
        """Say who is a member: a new one counts as alive, one that is none is forgotten."""
        wanted = set(nodes)
        for node in self._members.keys() - wanted:
            del self._members[node]
        for node in wanted - self._members.keys():
            self._members[node] = _Member(heard_at=now, since=now, added_at=now)
            # A newcomer is asked soon, not when the present round is over.
            self._round.append(node)

    def state(self, node: NodeId) -> State | None:
        """Return how a member stands; None for a stranger."""
        member = self._members.get(node)
        return member.state if member else None

    def heard_ago(self, node: NodeId, now: float) -> float | None:
        """Return the seconds since a member was last heard; None for a stranger."""
        member = self._members.get(node)
        return max(0.0, now - member.heard_at) if member else None

    def alive(self) -> list[NodeId]:
        """Return the members that are not gone; a suspect counts until it is."""
        return [node for node, m in self._members.items() if m.state is not State.GONE]

    def there(self, now: float) -> list[NodeId]:
        """Return whom to count on: of those that are not gone, who has shown that it is there.

        And for a while who has not: this node, or that one, has just begun.
        """
        members = [(node, self._members[node]) for node in self.alive()]
        return [n for n, m in members if m.proved_at > _NEVER or now - m.added_at < UNSHOWN_S]

    def linkable(self, now: float) -> list[NodeId]:
        """Return whom links may be kept to: who is there, or all that are not gone if nobody is."""
        return self.there(now) or self.alive()

    def heard(self, node: NodeId, at: float) -> None:
        """Note that a member said something at `at`: now, or earlier when it was long on its way.

        What is older than what is known changes nothing.
        """
        member = self._members.get(node)
        if member is None:
            return
        first = member.proved_at == _NEVER and member.state is State.ALIVE
        member.heard_at = max(at, member.heard_at)
        member.proved_at = max(at, member.proved_at)
        if at >= member.since:
            member.misses, member.allowed_misses = 0, MISSES
            self._to(node, member, State.ALIVE, at)
        if first:
            self._shown(node)

    def doubt(self, node: NodeId, now: float) -> bool:
        """Take a hint that a member may have died (its last link went, others suspect it).

        It is asked at once; links are closed for want of use as well, so one lost answer is not
        enough, unless the member never answered from here. Returns whether the hint is of use: the
        member is alive by what was known.
        """
        member = self._members.get(node)
        if member is None or member.state is not State.ALIVE:
            return False
        if not member.answers:
            member.allowed_misses = 1
        member.urgent = True
        self._next_at = now
        return True

    def settled(self, node: NodeId, now: float) -> bool:
        """Say whether a member has answered from here, or has been one for a while."""
        member = self._members.get(node)
        return member is not None and (member.answers or now - member.added_at >= NEW_S)

    def slept(self, node: NodeId) -> None:
        """Take it that a member cannot be asked from here now, as if it had never answered."""
        member = self._members.get(node)
        if member is not None:
            member.answers, member.misses = False, 0

    def departed(self, node: NodeId, at: float) -> None:
        """Take a member's word, said at `at`, that it goes (its agent stops): it is gone at once.

        Unless it has shown since that it is there.
        """
        member = self._members.get(node)
        if member is not None and at >= member.proved_at:
            member.answers = False
            self._to(node, member, State.GONE, at)

    def due(self, now: float) -> list[NodeId]:
        """Return whom to ask now, and move on those whose time is over; call it several times a s.

        Report each with `answered` or `missed`.
        """
        asked, silent_s, again_s = [], self.silent_s, SUSPECT_INTERVAL_S * self.patience
        for node, member in self._members.items():
            missing = member.state is State.ALIVE and member.misses > 0
            if member.state is State.ALIVE and now - member.heard_at > silent_s:
                self._to(node, member, State.SUSPECT, now)
            elif member.state is State.SUSPECT and now - member.since >= SUSPECT_S * self.patience:
                self._to(node, member, State.GONE, now)
                member.answers = False
            again = missing or member.state is State.SUSPECT
            if member.urgent or (again and now - member.asked_at >= again_s):
                asked.append(node)
        fresh = (n for n, m in self._members.items() if m.asked_at == _NEVER and n not in asked)
        asked += itertools.islice(fresh, FRESH_PER_CALL)
        if now >= self._next_at:
            self._next_at = now + PROBE_INTERVAL_S
            if (turn := self._turn()) is not None and turn not in asked:
                asked.append(turn)
        if now >= self._gone_at:
            self._gone_at = now + GONE_INTERVAL_S
            gone = [node for node, m in self._members.items() if m.state is State.GONE]
            if gone:
                asked.append(self._rng.choice(gone))
        for node in asked:
            self._members[node].asked_at = now
            self._members[node].urgent = False
        return asked

    def answered(self, node: NodeId, now: float) -> None:
        """Note an answer to a question."""
        member = self._members.get(node)
        if member is not None:
            member.answers = True
            self._strain = max(0, self._strain - 1)
            self.heard(node, now)

    def missed(self, node: NodeId, asked_at: float, now: float) -> None:
        """Note that a question of `asked_at` was not answered in its time.

        Who was heard since then lives, and is slow, or this node is.
        """
        member = self._members.get(node)
        if member is None or member.state is not State.ALIVE:
            return
        doubted = member.allowed_misses < MISSES
        if not (member.answers or doubted):
            return
        self._strain = min(STRAIN_MAX, self._strain + 1)
        if member.proved_at > asked_at:
            return
        member.misses += 1
        if member.misses >= member.allowed_misses:
            self._to(node, member, State.SUSPECT, now)

    def _turn(self) -> NodeId | None:
        """Return the next member of the round that is alive; each is asked once in a round."""
        for _ in range(2):
            while self._round:
                node = self._round.pop()
                member = self._members.get(node)
                if member is not None and member.state is State.ALIVE:
                    return node
            self._round = list(self._members)
            self._rng.shuffle(self._round)
        return None

    def _to(self, node: NodeId, member: _Member, state: State, now: float) -> None:
        if member.state is not state:
            member.state, member.since = state, now
            if state is State.SUSPECT:
                member.asked_at = _LONG_AGO
            self._changed(node, state)
