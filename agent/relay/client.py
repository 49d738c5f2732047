"""The side that uses a relay: one allocation, from the request to WireGuard's endpoint. A core.

    state      leaves it by                               to
    ---------  -----------------------------------------  ---------
    asking     the relay's Allocated                      opening
    opening    Opened (Challenge: Open with its cookie)   open
    open       no Opened for LOST_S                       opening
    any        a refusal, or no answer for GIVE_UP_S      failed
    any        close()                                    closed

Feed it answers of the control plane and datagrams that came to WireGuard's port, ask it when it
wants to wake, and carry out what `take` gives. While open it opens again every KEEP_S: that tells
a NAT that moved us, and answers with a Challenge if so; `reopen` does it at once. At first it looks
oftener whether the peer is there as well. Through a tunnel nothing is to be opened, since the
tunnel proves the side by itself. Times are unix seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from random import Random

from agent.errors import PeerError
from agent.identity.keys import NodeId
from agent.relay import messages
from agent.relay.messages import Allocate, Allocated, Refresh, Release
from agent.relay.pairs import Place
from agent.relay.wire import NO_COOKIE, NONCE_BYTES, Challenge, Open, Opened, PairSeal

# Opens are small and the relay is often near: the second one goes before a person notices.
RETRY_S = 0.25
RETRY_MOST_S = 4.0
# Below the shortest time after which NATs forget a UDP mapping (RFC 4787: 2 min, many: 30 s).
KEEP_S = 10.0
LOST_S = 3 * KEEP_S
# Both sides open at about the same time, and are to know when the other one has.
PEER_POLL_S = 0.25
PEER_WAIT_S = 15.0
GIVE_UP_S = 30.0
# A relay that does not answer on the control plane is asked again after this.
ASK_AGAIN_S = 5.0
# Refreshed at a third of the lifetime, so that two refreshes may fail.
_REFRESHES = 3


class State(enum.Enum):
    """See the table above."""

    ASKING = "asking"
    OPENING = "opening"
    OPEN = "open"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True)
class Ask:
    """Send this to the relay over the control plane (`messages.PROTOCOL`)."""

    request: bytes


@dataclass(frozen=True)
class Send:
    """Send this datagram from WireGuard's port."""

    datagram: bytes
    to: Place


@dataclass(frozen=True)
class Ready:
    """WireGuard may use `endpoint` for the peer; `seen` is our place as the relay sees it."""

    endpoint: Place
    seen: Place
    peer_open: bool


@dataclass(frozen=True)
class Lost:
    """The endpoint is of no use any more, or never came to be; the reason is a clause."""

    reason: str


Output = Ask | Send | Ready | Lost


class RelayClient:
    """Our side of one pair at one relay."""

    def __init__(
        self, peer: NodeId, relay: str, seal: PairSeal, random: Random, now: float,
        *, tunnelled: bool = False,
    ) -> None:  # fmt: skip
        """`relay`: the relay's address, a literal; `seal`: between this node and the relay.

        `tunnelled`: a tunnel carries the packets and proves the side, so nothing is opened; the
        allocation alone is asked for and kept.
        """
        self._peer = peer
        self._relay = relay
        self._seal = seal
        self._random = random
        self._tunnelled = tunnelled
        self._out: list[Output] = []
        self._allocated: Allocated | None = None
        self._cookie = NO_COOKIE
        self._last_us = self._answered_us = 0
        self._retry_s = RETRY_S
        self._refresh_at = self._expires_at = 0.0
        self._heard_at = self._began_at = now
        self._told: Ready | None = None
        self.state = State.ASKING
        self._ask(now)

    @property
    def allocated(self) -> Allocated | None:
        """What the relay gave us: what the peer has to be told."""
        return self._allocated

    @property
    def wakes_at(self) -> float | None:
        """When `tick` is due; None: never again."""
        match self.state:
            case State.ASKING:
                return self._next_at
            case State.OPENING | State.OPEN:
                return self._refresh_at if self._tunnelled else min(self._next_at, self._refresh_at)
            case _:
                return None

    def take(self) -> list[Output]:
        """Return what is to be done, in order, since the last call."""
        out, self._out = self._out, []
        return out

    def joined(self, allocated: Allocated, now: float) -> None:
        """Use what the peer was given and told us, without asking: ports as they are for us."""
        self._allocate(allocated, now)

    def answered(self, raw: bytes, now: float) -> None:
        """Take the relay's answer to our latest request; nonsense is a refusal."""
        if self.state in (State.FAILED, State.CLOSED):
            return
        try:
            self._allocate(messages.decode_answer(raw, Allocated), now)
        except PeerError as error:
            self._fail(error.message)

    def refused(self, reason: str, *, final: bool, now: float) -> None:
        """The relay refused (`final`), or did not answer: then it is asked again for a while."""
        if self.state in (State.FAILED, State.CLOSED):
            return
        over = now >= (self._expires_at if self._allocated else self._began_at + GIVE_UP_S)
        if final or over:
            self._fail(reason)
        elif self.state is State.ASKING:
            self._next_at = now + ASK_AGAIN_S
        else:
            self._refresh_at = now + ASK_AGAIN_S

    def received(self, datagram: bytes, source: Place, now: float) -> bool:
        """Take a datagram that came to WireGuard's port; say whether it was for us."""
        if self._allocated is None or source != (self._relay, self._allocated.port):
            return False
        message = self._seal.open(datagram)
        if not isinstance(message, Challenge | Opened) or message.id != self._allocated.id:
            return False
        # Answers repeat our clock, so that an old one, or one again, is known by it.
        fresh = self._answered_us < message.sent_us <= self._last_us
        if self.state not in (State.OPENING, State.OPEN) or not fresh:
            return True
        self._answered_us = message.sent_us
        if isinstance(message, Challenge):
            if message.cookie != self._cookie:
                self._cookie = message.cookie
                self._open(now)
            return True
        self._heard_at = now
        self._retry_s = RETRY_S
        self.state = State.OPEN
        hasty = not message.peer_open and now < self._began_at + PEER_WAIT_S
        self._next_at = now + (PEER_POLL_S if hasty else KEEP_S) * self._random.uniform(0.8, 1.0)
        ready = Ready(source, message.seen, message.peer_open)
        if ready != self._told:
            self._told = ready
            self._out.append(ready)
        return True

    def reopen(self, now: float) -> None:
        """Prove our place again, now: it may have changed, or the path went silent."""
        if self.state in (State.OPENING, State.OPEN) and not self._tunnelled:
            self._retry_s = RETRY_S
            self._open(now)

    def tick(self, now: float) -> None:
        """Do what time brings."""
        wakes_at = self.wakes_at
        if wakes_at is None or now < wakes_at:
            return
        if self.state is State.ASKING:
            if now >= self._began_at + GIVE_UP_S:
                self._fail("the relay does not answer")
            else:
                self._ask(now)
            return
        if now >= self._refresh_at and self._allocated is not None:
            self._refresh_at = now + ASK_AGAIN_S
            self._out.append(Ask(messages.encode(Refresh(self._allocated.id))))
        if now >= self._next_at and not self._tunnelled:
            if self.state is State.OPEN and now >= self._heard_at + LOST_S:
                self.state, self._told = State.OPENING, None
                self._began_at = now
                self._out.append(Lost("the relay is silent"))
            elif self.state is State.OPENING and now >= self._began_at + GIVE_UP_S:
                self._fail("the relay's port does not answer: UDP to it may be blocked")
                return
            self._open(now)

    def close(self) -> None:
        """Give the allocation back."""
        if self._allocated is not None and self.state in (State.OPENING, State.OPEN):
            self._out.append(Ask(messages.encode(Release(self._allocated.id))))
        self.state = State.CLOSED

    # ------------------------------------------------------------------ inside

    def _ask(self, now: float) -> None:
        self._next_at = now + ASK_AGAIN_S
        self._out.append(Ask(messages.encode(Allocate(self._peer.ed25519))))

    def _allocate(self, allocated: Allocated, now: float) -> None:
        before, self._allocated = self._allocated, allocated
        self._expires_at = now + allocated.lifetime_s
        self._refresh_at = now + allocated.lifetime_s / _REFRESHES
        if before is None or before.id != allocated.id:
            self.state, self._began_at, self._cookie = State.OPENING, now, NO_COOKIE
            self._retry_s = RETRY_S
            if self._tunnelled:
                self.state = State.OPEN
            else:
                self._open(now)

    def _open(self, now: float) -> None:
        """Send an Open, and say when the next one is due: soon, then less and less often."""
        if self._allocated is None:
            return
        self._last_us = max(self._last_us + 1, int(now * 1e6))
        message = Open(self._allocated.id, self._last_us, self._cookie)
        datagram = self._seal.seal(message, self._random.randbytes(NONCE_BYTES))
        self._out.append(Send(datagram, (self._relay, self._allocated.port)))
        self._next_at = now + self._retry_s * self._random.uniform(0.8, 1.0)
        self._retry_s = min(RETRY_MOST_S, 2 * self._retry_s)

    def _fail(self, reason: str) -> None:
        self.state = State.FAILED
        self._out.append(Lost(reason))
