"""One pair's attempts to get through a hard NAT by the birthday paradox. A core.

The course of an attempt stands at the top of `birthday.py`; this is its state machine, for both
sides. `pair.py` asks it and owns the paths.

    side  state    event                                becomes    does
    ----  -----    -----                                -------    ----
    hard  idle     plain probing failed, pause is over  holding    StartBirthday, a signal
    hard  holding  a socket hears a ping                hit        pong (provisional), AddSnat
    hard  hit      the easy side's place answers        idle       StopBirthday; the rule stays
    hard  hit      it does not for SETTLE_S             holding    RemoveSnat
    hard  holding  HOLD_S passed                        idle       StopBirthday
    hard  any      the path over the rule failed        any        RemoveSnat
    easy  idle     a signal tells a new attempt         shooting   pings random ports
    easy  shooting a pong, or SALVO_S passed            idle       that place is a path
"""

from __future__ import annotations

from agent.identity.keys import NodeId
from agent.paths.birthday import HOLD_S, SOCKETS, Pauses, Salvo
from agent.paths.book import Book
from agent.paths.credit import Credit
from agent.paths.messages import NatKind, Place
from agent.paths.outputs import AddSnat, RemoveSnat, StartBirthday, StopBirthday
from agent.paths.own import Own

# The rule is installed within some 50 ms and a ping goes each 100 ms.
SETTLE_S = 3.0
# Plain probing has its chance first; a machine without a NAT is reached plainly, unless it has a
# firewall.
AFTER_S = {NatKind.EASY: 0.4, NatKind.NONE: 2.0}
# Others of ours are at it; or the NAT's kind may be known by then.
_AGAIN_S = 1.0
_NEVER = float("inf")


class Chance:
    """The attempts of one pair, seen from one side."""

    def __init__(self, peer: NodeId, own: Own, credit: Credit) -> None:
        self._peer = peer
        self._own = own
        self._pauses = Pauses()
        self._hold_until: float | None = None
        self._place: Place | None = None
        self._hit: tuple[Place, int] | None = None
        self._hit_at = 0.0
        self._answered_attempt = 0
        self._salvos = credit.salvos
        self._consider_at = _NEVER
        self.salvo: Salvo | None = None

    @property
    def wake_at(self) -> float:
        """When something is due."""
        times = [self._hold_until if self._hold_until is not None else _NEVER, self._consider_at]
        if self._hit is not None and self._hold_until is not None:
            times.append(self._hit_at + SETTLE_S)
        if self.salvo is not None:
            times.append(self.salvo.wake_at)
        return min(times)

    @property
    def attempt(self) -> int:
        """The attempt that is under way on the hard side; 0: none."""
        return self._pauses.attempt if self._hold_until is not None else 0

    @property
    def trying(self) -> bool:
        """Whether an attempt is under way on either side."""
        return self._hold_until is not None or self.salvo is not None

    @property
    def tried(self) -> int:
        """How many attempts were made on the hard side, or answered on the easy one."""
        return max(self._pauses.attempt, self._answered_attempt)

    def began_anew(self) -> None:
        """The peer's agent has started again, and counts its attempts from one."""
        self._answered_attempt = 0

    def told(self, attempt: int, shown: Place | None, direct: bool, now: float) -> None:
        """Take a signal of the peer: its attempt (0: none), and where its NAT shows it."""
        self._consider_at = min(self._consider_at, now + AFTER_S[NatKind.EASY])
        easy = self._own.nat in (NatKind.EASY, NatKind.NONE, NatKind.UNKNOWN)
        if attempt and shown is not None and easy and not direct:
            self.shoot(attempt, shown[0], now)

    def consider(self, book: Book, since: float, direct: bool, now: float) -> bool:
        """Hard side: begin an attempt if it is time; say whether one was begun."""
        if now < self._consider_at:
            return False
        self._consider_at = _NEVER
        after, place = AFTER_S.get(book.nat), book.shown_place()
        if self._own.nat is not NatKind.HARD or after is None or place is None or direct:
            return False
        due = max(self._pauses.next_at, since + after)
        if now < due:
            self._consider_at = due
            return False
        begun = self.begin(place, now)
        self._consider_at = self._pauses.next_at if begun else now + _AGAIN_S
        return begun

    def begin(self, place: Place, now: float) -> bool:
        """Hard side: open the sockets towards `place`; False when it is not our turn."""
        if self.trying or now < self._pauses.next_at or not self._own.turns.take(self):
            return False
        self._remove()
        self._pauses.begin(now)
        self._hold_until, self._place = now + HOLD_S, place
        self._own.out(StartBirthday(self._peer, place, SOCKETS))
        return True

    def shoot(self, attempt: int, host: str, now: float) -> bool:
        """Easy side: the peer's sockets are open; False for a known attempt, or one too many."""
        if attempt == self._answered_attempt or self.trying or not self._own.turns.take(self):
            return False
        if not self._salvos.take(now):
            self._own.turns.give_back(self)
            return False
        self._answered_attempt = attempt
        self.salvo = Salvo(host, self._own.rng, now)
        return True

    def heard(self, place: Place, local_port: int, now: float) -> bool:
        """Hard side: a socket of ours heard the peer; say whether it is the first."""
        if self._hold_until is None or place != self._place or self._hit is not None:
            return False
        self._hit, self._hit_at = (place, local_port), now
        self._own.out(AddSnat(self._peer, place, local_port))
        return True

    def settled(self, place: Place) -> None:
        """A direct path is there: what is under way ends, and the next attempt may come at once."""
        if self._hit is not None and self._hit[0] != place:
            self._remove()
        if self.salvo is not None and self.salvo.host == place[0]:
            self._salvos.give_back()
        self._end()
        self._pauses.reset()

    def path_failed(self, place: Place, now: float) -> None:
        """The path to that place is dead; if it went over a rule, the rule goes."""
        self._consider_at = now
        if self._hit is not None and self._hit[0] == place:
            self._remove()

    def tick(self, now: float) -> None:
        """End what has had its time."""
        unsettled = self._hit is not None and self._hold_until is not None
        if unsettled and now - self._hit_at >= SETTLE_S:
            self._remove()
        if self._hold_until is not None and now >= self._hold_until:
            self._remove()
            self._end()
        if self.salvo is not None and self.salvo.over(now):
            self._end()

    def network_changed(self) -> None:
        """All mappings are gone, and the pauses with them."""
        self.close()
        self._pauses.reset()

    def close(self) -> None:
        """The pair ends."""
        self._remove()
        self._end()

    def _end(self) -> None:
        if self._hold_until is not None:
            self._own.out(StopBirthday(self._peer))
        self._hold_until = self._place = self.salvo = None
        self._own.turns.give_back(self)

    def _remove(self) -> None:
        if self._hit is not None:
            self._own.out(RemoveSnat(self._peer, *self._hit))
        self._hit = None
