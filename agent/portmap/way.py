"""One protocol at one gateway, and the one mapping that it may hold there. A core.

    state      what it means                    leaves by
    RESTING    nothing is under way             probe → PROBING
    PROBING    asking whether it is spoken      answer → READY; silence, refusal → RESTING
    READY      spoken, nothing mapped           hold → ASKING
    ASKING     asking for the mapping           grant → MAPPED; silence, refusal → RESTING
    MAPPED     it has a mapping for us          expiry, refusal, silence twice → RESTING
    RELEASING  taking it back                   answer, silence → RESTING

While MAPPED it checks every CHECK_S, and asks again: at half the lifetime; when a check finds the
mapping gone, the address changed or nobody there; when the gateway's clock shows that it began
anew. What is mapped stays so while it asks. A datagram changes something only if it answers a
request that waits for it, so whatever a gateway sends, it cannot make us do more than our pace.

Used by `contest.py`. UPnP has no datagrams: there a request is carried out by a child process, and
its one "wait" is that process's deadline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from random import Random

from agent.portmap.words import (
    LOOKING,
    Alive,
    Answer,
    Gone,
    Granted,
    Kind,
    Mapping,
    Refused,
    Released,
    Request,
    can_be_external,
    is_public,
)

# RFC 6886 section 3.3 recommends two hours.
LIFETIME_S = 7200
# RFC 6887 section 15 lets a client believe a day; a year would be a gateway's mistake.
_LIFETIME_MAX_S = 24 * 3600
# A gateway that grants less makes more work than its mapping is worth.
_LIFETIME_MIN_S = 30
# One small packet; so long may a gateway's restart stay unnoticed if its announcement was lost.
CHECK_S = 300.0
# Between two askings and two checks, whatever the gateway's clock, lifetimes and announcements say
# (RFC 6887 asks for 4 s).
_ASK_GAP_S = 10.0
# RFC 6887 section 14.1.2: after an announcement clients wait so long, lest all ask at once.
_ANNOUNCED_SPREAD_S = 5.0
# At the end we wait for nobody long, so a release is sent again faster than the RFCs ask.
RELEASE_WAITS_S = (0.25, 0.5, 0.75)
SILENT = "it did not answer"
NOT_LISTENING = "nothing there listens"
# A refusal may name how long it holds; nobody is left alone for longer than this.
_RETRY_MAX_S = 3600


class State(Enum):
    """See the table above."""

    RESTING = "resting"
    PROBING = "probing"
    READY = "ready"
    ASKING = "asking"
    MAPPED = "mapped"
    RELEASING = "releasing"


@dataclass(frozen=True)
class Pace:
    """What differs between protocols: how often to repeat, and what a clock's jump is."""

    waits: Callable[[Random], Iterable[float]]
    lost_state: Callable[[int, float, int, float], bool]
    release_waits: Iterable[float] = RELEASE_WAITS_S
    check_s: float = CHECK_S
    lifetime_s: int = LIFETIME_S


class _Exchange:
    """A request that waits for its answer."""

    def __init__(self, request: Request, waits: Iterable[float], now: float) -> None:
        self.request = request
        self._waits = iter(waits)
        self.due_at = now
        self.tries = 0

    def again(self, now: float) -> bool:
        """Count one more try; False when there were enough."""
        wait = next(self._waits, None)
        if wait is None:
            return False
        self.due_at = now + wait
        self.tries += 1
        return True


class Way:
    """Fed with answers and time; `take_requests` is what it wants sent, `timer` when to wake it."""

    def __init__(
        self, protocol: str, gateway: str, internal_port: int, pace: Pace, rng: Random
    ) -> None:
        self.protocol = protocol
        self.gateway = gateway
        self.state = State.RESTING
        self.why = "not tried yet"
        self.mapping: Mapping | None = None
        self.probed_at = -math.inf
        self.retry_at = -math.inf
        self._port = internal_port
        self._pace = pace
        self._rng = rng
        self._exchange: _Exchange | None = None
        self._out: list[Request] = []
        self._epoch: tuple[int, float] | None = None
        self._address: str | None = None
        self._check_at = self._ask_at = self._expires_at = math.inf
        self._asked_at = self._checked_at = -math.inf
        self._doubted = False  # it may have lost our mapping
        self._may_be_mapped = False  # something may be open there, whether we heard of it or not

    @property
    def waiting(self) -> bool:
        """Whether a request waits for its answer; nothing that comes otherwise is heard."""
        return self._exchange is not None

    # What the service asks of it.

    def probe(self, now: float) -> None:
        """Find out whether the gateway speaks this; only from RESTING and READY."""
        if self.state not in {State.RESTING, State.READY}:
            return
        self.state, self.why, self.probed_at = State.PROBING, "asked, no answer yet", now
        self.retry_at = -math.inf
        self._epoch = None
        self._begin(Request(Kind.PROBE), now)

    def hold(self, now: float) -> None:
        """Get the mapping; only from READY."""
        if self.state is State.READY:
            self.state, self.why = State.ASKING, "asked for the mapping"
            self._ask(now)

    def look_again(self, now: float) -> None:
        """Check soon that the mapping is still there."""
        if self.state is State.MAPPED:
            self._check_at = min(self._check_at, max(now, self._checked_at + _ASK_GAP_S))

    def release(self, now: float) -> None:
        """Take back what may be mapped, and rest."""
        request = self._request(Kind.RELEASE)
        self._rest("not asked any more")
        if self._may_be_mapped:
            self.state, self.why = State.RELEASING, "taking the mapping back"
            self._begin(request, now, self._pace.release_waits)

    # What happens to it.

    def take_requests(self) -> list[Request]:
        """Return what is to be sent now."""
        out, self._out = self._out, []
        return out

    def timer(self) -> float:
        """Return when `tick` has something to do; infinity for never."""
        if self._exchange is not None:
            return min(self._exchange.due_at, self._expires_at)
        if self.state is State.MAPPED:
            return min(self._check_at, self._ask_at, self._expires_at)
        return math.inf

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self.state is State.MAPPED and now >= self._expires_at:
            self._rest("the mapping ended, it did not answer in time")
        exchange = self._exchange
        if exchange is not None and now >= exchange.due_at:
            if exchange.again(now):
                self._out.append(exchange.request)
            else:
                self._exchange = None
                self._unanswered(exchange.request.kind, now)
        if self.state is not State.MAPPED or self._exchange is not None:
            return
        if now >= self._ask_at:
            self._ask(now)
        elif now >= self._check_at:
            self._check_at, self._checked_at = now + self._pace.check_s, now
            self._begin(self._request(Kind.CHECK), now)

    def unreachable(self, now: float) -> None:
        """Take the kernel's word that nothing listens there; it may be restarting."""
        if self.state is State.PROBING:
            self._rest(NOT_LISTENING)

    def announced(self, now: float) -> None:
        """Take that the gateway told all hosts of itself: a reason to check, for it proves nothing.

        So it does not matter in which protocol: miniupnpd announces a start in PCP only.
        """
        self.look_again(now + self._rng.uniform(0, _ANNOUNCED_SPREAD_S))

    def received(self, answer: Answer, now: float) -> None:
        """Take an answer; one that nothing waits for changes nothing."""
        if self._exchange is None or self._exchange.tries == 0:
            return
        kind = self._exchange.request.kind
        if kind not in _fits(answer):
            return
        self._exchange = None
        restarted = not isinstance(answer, Gone) and self._restarted(answer.epoch, now)
        match answer:
            case Refused():
                self._refused(kind, answer, now)
            case Released() if kind is Kind.RELEASE:
                self._may_be_mapped = False
                self._rest("the mapping was taken back")
            case Released():
                self._rest("it takes mappings back at once")
            case Alive() if kind is Kind.PROBE:
                self.state, self.why = State.READY, "it can be used"
                self._address = answer.address
            case Alive():
                held = self.mapping.external[0] if self.mapping else None
                moved = answer.address not in {None, held}
                self._address = answer.address
                if restarted or moved:
                    self._doubt(now)
            case Gone():
                self._doubt(now)
            case Granted():
                self._granted(answer, now)
                if restarted:  # and may have another address, which a grant need not tell
                    self.look_again(now)

    # Inside.

    def _begin(self, request: Request, now: float, waits: Iterable[float] = ()) -> None:
        self._exchange = _Exchange(request, waits or self._pace.waits(self._rng), now)
        self.tick(now)

    def _ask(self, now: float) -> None:
        self._asked_at = now
        self._ask_at = math.inf
        self._may_be_mapped = True
        self._begin(self._request(Kind.ASK, self._pace.lifetime_s), now)

    def _request(self, kind: Kind, lifetime_s: int = 0) -> Request:
        """Return a request about the mapping that there is; about a first one, our own port."""
        if self.mapping is not None:
            address, port = self.mapping.external
            return Request(kind, lifetime_s, port, address)
        return Request(kind, lifetime_s, self._port if kind is Kind.ASK else 0)

    def _doubt(self, now: float) -> None:
        self._doubted = True
        self._ask_at = min(self._ask_at, max(now, self._asked_at + _ASK_GAP_S))

    def _granted(self, granted: Granted, now: float) -> None:
        address = granted.address or self._address
        lifetime = granted.lifetime_s
        if not 0 < granted.external_port < 65536 or not address or not can_be_external(address):
            self._rest("it granted a mapping without a usable place")
            return
        if lifetime is not None and lifetime < _LIFETIME_MIN_S:
            self._rest(f"it grants mappings for {lifetime} s only")
            return
        if lifetime is not None:
            lifetime = min(lifetime, _LIFETIME_MAX_S)
        place = address, granted.external_port
        self.mapping = Mapping(self.protocol, self.gateway, place, lifetime, is_public(address))
        self.state, self.why = State.MAPPED, ""
        self._address = address
        self._doubted = False
        self._expires_at = math.inf if lifetime is None else now + lifetime
        self._ask_at = now + max(_ASK_GAP_S, (lifetime or self._pace.lifetime_s) / 2)
        self._check_at = now + self._pace.check_s

    def _refused(self, kind: Kind, refused: Refused, now: float) -> None:
        if kind is Kind.ASK and self.mapping is None:
            self._may_be_mapped = False
        self._rest(refused.why)
        self.retry_at = now + min(refused.retry_s or 0, _RETRY_MAX_S)

    def _unanswered(self, kind: Kind, now: float) -> None:
        if self.state is not State.MAPPED:
            self._rest(SILENT)
        elif kind is Kind.CHECK:
            self._doubt(now)
        elif self._doubted:
            self._rest("it stopped answering")
        else:
            left = self._expires_at - now
            self._ask_at = now + max(_ASK_GAP_S, min(left / 2, LIFETIME_S / 2))

    def _rest(self, why: str) -> None:
        self.state, self.why = State.RESTING, why
        self.mapping = None
        self._exchange = None
        self._out.clear()
        self._doubted = False
        self._check_at = self._ask_at = self._expires_at = math.inf

    def _restarted(self, epoch: int | None, now: float) -> bool:
        if epoch is None:
            return False
        before, self._epoch = self._epoch, (epoch, now)
        return before is not None and self._pace.lost_state(*before, epoch, now)


_GRANTING, _ENDING = frozenset({Kind.ASK}), frozenset({Kind.ASK, Kind.RELEASE})


def _fits(answer: Answer) -> frozenset[Kind]:
    """Return the kinds of request that this can be the answer to."""
    match answer:
        case Alive():
            return LOOKING
        case Granted():
            return _GRANTING
        case Released():
            return _ENDING
        case Gone():
            return frozenset({Kind.CHECK})
        case Refused():
            return answer.kinds
